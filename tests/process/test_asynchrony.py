"""Rounds that are applied late, between real processes, and their replay in one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import FORKSERVER, read_logs, replay
from washp2p.cli.main import main
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from washp2p.runfolder.rundir import read_config
from washp2p.runfolder.runlog import Jump


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-delay=auto", "--p=0.05"],
        ["--max-delay=3", "--p=0.3", "--method=wash-opt", "--late=difference"],
        ["--max-delay=none", "--p=0.3", "--method=wash-opt", "--group=2"],
        ["--max-delay=3", "--p=0.3", "--swa-from=1", "--swa-lr=0.02"],
    ],
)
def test_a_replay_ends_with_the_same_bits(runs, tmp_path, flags):
    coordinator, workers = runs.population(3, "--epochs=2", *flags)
    assert coordinator.wait() == 0, coordinator.text
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.summary["rounds"] == 80
    for row in coordinator.summary["bytes"]:
        assert row["steps"] == 80
        assert row["payload"] == row["expected_payload"]
    assert sum(row["applied_values"] for row in coordinator.summary["bytes"]) > 0
    assert replay(coordinator.folder, tmp_path) == []


def slowed(arguments, output, seconds):
    """A worker whose every step takes `seconds` longer."""
    log = Path(output).open("w")  # noqa: SIM115 - for the life of the process
    sys.stdout = sys.stderr = log
    from workers.__main__ import main
    from workers.training.trainer import Trainer

    learning_rate = Trainer._learning_rate

    def slowly(self):
        time.sleep(seconds)  # being slow is what this is about
        return learning_rate(self)

    Trainer._learning_rate = slowly
    sys.exit(main(arguments))


@pytest.mark.parametrize("flags", [["--p=0.05"], ["--p=0.5", "--every=5", "--track-consensus=7"]])
def test_a_slow_member_jumps_and_ends_with_its_peers(runs, tmp_path, flags):
    coordinator = runs.coordinator("--n=2", "--epochs=5", "--max-delay=none", "--expire=6", *flags)
    arguments = [f"--coordinator={coordinator.address}", f"--run-dir={coordinator.folder}"]
    arguments += ["--threads=1", f"--data-dir={tmp_path}"]
    processes = [
        FORKSERVER.Process(target=slowed, args=(arguments, tmp_path / f"{s}.txt", s))
        for s in (0.005, 0.03)
    ]
    for process in processes:
        process.start()
    assert coordinator.wait(100) == 0, coordinator.text
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
        process.close()
    summary = coordinator.summary
    slow, fast = sorted(summary["bytes"], key=lambda row: row["steps"])
    assert fast["steps"] == summary["rounds"] == 200
    assert slow["steps"] < 200
    assert abs(slow["seconds"] - fast["seconds"]) < 0.3 * fast["seconds"]
    for row in (slow, fast):
        assert row["applied_values"] > 0 or "--every=5" in flags
        assert row["expired_values"] > 0 or "--every=5" in flags
        assert row["max_delay"] == "none"
    records = read_logs(coordinator.folder)[slow["member"]]
    assert any(isinstance(record, Jump) for record in records)
    assert replay(coordinator.folder, tmp_path) == []


def test_auto_settles_and_says_on_what(runs):
    coordinator, _ = runs.population(2, "--epochs=2", "--p=0.05")
    assert coordinator.wait() == 0, coordinator.text
    assert RunConfig.resolve(n=2).exchange.max_delay == "auto"
    for row in coordinator.summary["bytes"]:
        assert 0 <= int(row["max_delay"]) <= 32
        assert 0 <= row["waited"] <= row["seconds"]
    assert "late" in coordinator.text


def test_a_replay_needs_every_members_log(runs, tmp_path, capsys):
    coordinator, _ = runs.population(2, "--epochs=1", "--p=0.05")
    assert coordinator.wait() == 0, coordinator.text
    flags = ["simulate", f"--replay={coordinator.folder}", f"--data-dir={tmp_path}"]
    assert main([*flags, f"--run-dir={tmp_path / 'first'}"]) == 0
    assert "bit for bit" in " ".join(capsys.readouterr().out.split())
    (coordinator.folder / "log" / "1.msgpack").unlink()
    with pytest.raises(SystemExit) as end:
        main([*flags, f"--run-dir={tmp_path / 'second'}"])
    assert end.value.code == 2
    assert "needs the logs of all members" in capsys.readouterr().err
    with pytest.raises(UsageError, match="expected the folder of a run"):
        read_config(tmp_path / "nothing")
