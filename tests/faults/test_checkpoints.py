"""Everything is killed at once, or the disk is full: the run goes on from its checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.faults.conftest import Story
from tests.integration.conftest import replay
from washp2p import points
from washp2p.runlog import Record
from workers.data import load_data
from workers.simulate import differences, simulate

FLAGS = ("--n=3", "--p=0.05", "--patience=2", "--epochs=4", "--checkpoint-epochs=1")


def kill_all(here):
    """A power cut."""
    for worker in here.workers:
        worker.process.kill()
    here.coordinators[-1].kill()
    for worker in here.workers:
        worker.process.join()


def resume(here, *flags):
    """Everything again, from the checkpoints."""
    coordinator = here.coordinator(*flags, resume=True)
    return coordinator, [here.worker() for _ in range(3)]


def finish(coordinator, workers):
    assert [worker.wait() for worker in workers] == [0] * len(workers)
    assert coordinator.wait() == 0, coordinator.text


def assert_undisturbed(here, tmp_path):
    """It ends with the bits, the metrics and the accounts of a run that was never interrupted."""
    story = Story(here.folder)
    story.assert_rosters_agree()
    for records in story.logs.values():
        assert [r.round for r in records if isinstance(r, Record)] == list(range(1, 161))
    reference = tmp_path / "reference"
    data = load_data(story.config, tmp_path, download=False)
    summary = simulate(story.config, data, reference, on_epoch=lambda _: None)
    assert differences(reference, here.folder) == []
    lines = [json.loads(line) for line in (here.folder / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(s) for s in (reference / "metrics.jsonl").read_text().splitlines()]
    assert sorted(lines, key=str) == sorted(expected, key=str)
    for row, simulated in zip(story.summary["bytes"], summary["bytes"], strict=True):
        for key in ("payload", "expected_payload", "steps", "applied_values"):
            assert row[key] == simulated[key], key
        assert row["theory"] == pytest.approx(simulated["theory"])
    return story


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("flags", "rounds"),
    [
        (("--checkpoint-epochs=1",), (40, 80)),
        (("--checkpoint-epochs=0", "--checkpoint-minutes=0.005"), range(8, 120)),
    ],
    ids=["epochs", "minutes"],
)
def test_a_power_cut(here, tmp_path, flags, rounds):
    first = here.coordinator(*FLAGS, "--max-delay=0", *flags)
    held = here.worker((points.BEFORE_SEND, 110))
    _ = [here.worker() for _ in range(2)]
    held.wait_until_held()
    kill_all(here)
    second, workers = resume(here)
    line = second.until("go on from their checkpoints of round")
    assert int(line.split()[-1].rstrip(".")) in rounds
    finish(second, workers)
    story = assert_undisturbed(here, tmp_path)
    assert [roster.members for roster in story.rosters] == [(0, 1, 2)] * 2
    kept = {int(folder.name) for folder in (here.folder / "checkpoints").iterdir()}
    assert min(kept) > 80
