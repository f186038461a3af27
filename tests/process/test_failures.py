"""Bad input, interrupts and deaths: one clear line, the right exit code, nobody left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
import zmq

from tests.support.layouts import make_layout
from tests.support.processes import command, greet
from tests.support.sources import ROOT
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Welcome
from washp2p.protocol.messages.from_worker import Attach, Leave, Metrics
from washp2p.runfolder import rundir
from workers.training.model_files import load_model

LONG = ("--epochs=100000", "--p=0.05")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["coordinator", "--n=1"], "--n is 1; expected 2"),
        (["coordinator", "--n=x"], "invalid int value: 'x'"),
        (["coordinator"], "the number of members is missing; add --n N"),
        (["coordinator", "--n=2", "--p=2"], "--p is 2.0; expected 0.0 to 1.0"),
        (
            ["coordinator", "--n=2", "--data=mnist"],
            "expected one of digits, fashion-mnist, cifar10",
        ),
        (["coordinator", "--n=2", "--method=sgd"], "expected one of wash, wash-opt, sparta"),
        (["coordinator", "--n=2", "--bind=tcp://0.0.0.0:5555"], "add --insecure"),
        (["coordinator", "--n=2", "--bind=5555"], "expected tcp://HOST:PORT"),
        (["coordinator", "--n=2", "--colour=red"], "unrecognized arguments: --colour=red"),
        (["coordinator", "--resume=/nowhere"], "/nowhere holds no run; expected one that was"),
        (["coordinator", "--resume=a", "--run-dir=b"], "not allowed with argument"),
        (["coordinator", "--n=2", "--checkpoint-minutes=-1"], "--checkpoint-minutes is -1.0"),
        (["washp2p", "run"], "the number of members is missing; add --n N"),
        (["washp2p", "run", "--resume=/nowhere"], "/nowhere holds no run"),
        (["washp2p", "run", "--resume=a", "--run-dir=b"], "leave out --run-dir"),
        (["washp2p", "run", "--n=0"], "--n is 0"),
        (["washp2p", "simulate", "--n=2", "--model=vit"], "expected one of linear, cnn, resnet18"),
        (["washp2p", "report", "/nowhere"], "/nowhere is not a run folder"),
        (["washp2p", "dance"], "invalid choice: 'dance'"),
        (["workers"], "required: --coordinator"),
        (["workers", "--coordinator=host"], "expected tcp://HOST:PORT"),
        (["workers", "--coordinator=tcp://127.0.0.1:9", "--threads=-1"], "0 to choose"),
        (["coordinator", "--n=2", "--p=1e-60"], "--p is 1e-60; expected 0, or 1e-15 to 1"),
        (["coordinator", "--n=2", "--ready-fd=77", "--bind=tcp://127.0.0.1:*"], "--ready-fd 77"),
        (["washp2p", "simulate", "--n=2", "--device=cpu"], "unrecognized arguments: --device=cpu"),
    ],
)
def test_bad_flags_get_one_line_and_exit_code_2(arguments, words):
    code, stderr = command(*arguments)
    assert code == 2
    assert words in stderr
    assert "\n" not in stderr


def test_an_address_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, stderr = command("coordinator", "--n=2", f"--bind=tcp://127.0.0.1:{port}")
    assert code == 2
    assert "choose another --bind" in stderr
    assert "\n" not in stderr


def test_a_run_folder_is_not_overwritten(runs, tmp_path):
    coordinator = runs.coordinator("--n=2")
    code, stderr = command("washp2p", "run", "--n=2", f"--run-dir={coordinator.folder}")
    assert code == 2
    assert "already holds a run" in stderr
    assert tmp_path.exists()


def test_an_unreachable_coordinator_after_the_stated_wait(runs):
    worker = runs.worker("tcp://127.0.0.1:9", "--wait=0.5")
    assert worker.wait() == 2
    assert "no coordinator answered at tcp://127.0.0.1:9 within 0.5 s" in worker.text
    assert "Traceback" not in worker.text


def test_a_worker_binds_off_loopback_only_when_told_that_it_may(runs):
    coordinator = runs.coordinator("--n=2", *LONG)
    worker = runs.worker(coordinator.address, "--bind=tcp://0.0.0.0:*")
    assert worker.wait() == 2
    assert "add --insecure" in worker.text
    assert "left: tcp://0.0.0.0:*" in coordinator.until("left")


def test_data_that_is_not_there_names_the_ways_to_get_it(runs, tmp_path):
    coordinator = runs.coordinator("--n=2", "--data=cifar10")
    worker = runs.worker(coordinator.address)
    assert worker.wait() == 2
    assert "no cifar10 in" in worker.text
    assert "add --download" in worker.text
    assert "Traceback" not in worker.text
    code, stderr = command(
        "washp2p", "run", "--n=2", "--data=imagefolder", f"--data-dir={tmp_path}"
    )
    assert code == 2
    assert "expected train/CLASS/* and val/CLASS/*" in stderr


def test_an_unusable_device(runs):
    worker = runs.worker("tcp://127.0.0.1:9", "--device=abacus")
    assert worker.wait() == 2
    assert "expected cpu, cuda or cuda:N" in worker.text


def test_more_workers_than_n_are_refused(runs):
    coordinator, _ = runs.population(2, *LONG)
    coordinator.until("training begins")
    late = runs.worker(coordinator.address)
    assert late.wait() == 2
    assert "the run has its 2 members" in late.text


@pytest.mark.parametrize("changes", [{"protocol": 99}, {"derivation": 99}, {"version": "99"}])
def test_other_versions_are_refused(runs, changes):
    coordinator = runs.coordinator("--n=2")
    answer, dealer = greet(coordinator.address, **changes)
    dealer.close(linger=0)
    assert "install the same version of washp2p on both" in answer.reason
    coordinator.until("refused h")


def test_garbage_on_the_control_plane_is_ignored(runs):
    coordinator = runs.coordinator("--n=2")
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(coordinator.address)
    for data in (b"", b"\xff" * 40, msgpack.packb([99]), msgpack.packb({"a": 1})):
        dealer.send(data)
    coordinator.until("refused a message malformed")
    dealer.close(linger=0)
    answer, dealer = greet(coordinator.address)
    assert isinstance(answer, Welcome)
    dealer.close(linger=0)


def test_last_words_are_heard_before_a_closed_connection_counts(runs):
    """A worker's messages may still wait in the coordinator's queue when its connection is gone."""
    coordinator = runs.coordinator("--n=2")
    _, dealer = greet(coordinator.address)
    coordinator.until("joined")
    os.kill(coordinator.process.pid, signal.SIGSTOP)
    for number in range(500):
        dealer.send(messages.encode(Metrics({"number": number})))
    dealer.send(messages.encode(Leave("tired", 1)))
    dealer.close(linger=10_000)
    time.sleep(0.6)  # not to wait for anything: the coordinator's next ping must be due
    os.kill(coordinator.process.pid, signal.SIGCONT)
    assert "left: tired" in coordinator.until("member 0 (h, process 1) ")


def test_a_bad_address_is_refused_at_once(runs):
    for address in ("tcp://127.0.0.1:*", "tcp://*:5555", "tcp://a@b:5555"):
        worker = runs.worker(address)
        assert worker.wait(30) == 2
        assert "Traceback" not in worker.text


def test_members_on_several_hosts_must_not_listen_on_loopback(runs):
    coordinator = runs.coordinator("--n=2")
    layout = make_layout([[3]]).to_wire()
    dealers = []
    for host, endpoint in (("near", "tcp://127.0.0.1:1"), ("far", "tcp://192.0.2.1:1")):
        _, dealer = greet(coordinator.address, host=host)
        dealer.send(messages.encode(Attach(layout, endpoint, [], host, b"", 5, {}, "")))
        dealers.append(dealer)
    assert coordinator.wait() == 2
    assert "member 0 (near, process 1) listens at tcp://127.0.0.1:1, which" in coordinator.text
    assert "--advertise" in coordinator.text
    for dealer in dealers:
        dealer.close(linger=0)


@pytest.mark.parametrize("folder", ["/proc/washp2p", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_made(folder):
    code, stderr = command(
        "coordinator", "--n=2", "--bind=tcp://127.0.0.1:*", f"--run-dir={folder}"
    )
    assert code == 2
    assert "choose another --run-dir" in stderr
    assert "\n" not in stderr


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.alone
@pytest.mark.parametrize("victim", ["coordinator", "worker"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_its_part_within_two_seconds(runs, victim, number):
    coordinator, workers = runs.population(3, *LONG)
    coordinator.until("epoch 2")
    pid = coordinator.process.pid if victim == "coordinator" else workers[1].process.pid
    began = time.monotonic()
    os.kill(pid, number)
    if victim == "coordinator":
        assert coordinator.wait(5) == 130
        assert [worker.wait(5) for worker in workers] == [130, 130, 130]
        assert time.monotonic() - began < 2
        assert all("the coordinator was interrupted" in worker.text for worker in workers)
        for member in range(3):  # what each had by then is kept
            state = load_model(rundir.rescued_file(coordinator.folder, member), member=member)
            assert all(value.isfinite().all() for value in state.values())
    else:
        assert workers[1].wait(5) == 130
        assert time.monotonic() - began < 2
        coordinator.until(f"process {pid}) left: it was interrupted")
        coordinator.until("going on with 2 of 3 members")
        coordinator.until("epoch")
    assert (coordinator.folder / "metrics.jsonl").stat().st_size > 0
    assert (coordinator.folder / "config.json").exists()
    assert not any("Traceback" in worker.text for worker in workers)
    assert "Traceback" not in coordinator.text


MOMENTS = ["coordinator at", "joined (2 of 2)", "epoch 1"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ENDS = [(MOMENTS[i], SIGNALS[j], bool((i + j) % 2)) for i in range(3) for j in range(3)]
"""Each signal at each moment. To the whole group, as a terminal does, or to the launcher alone:
each signal, and each moment, has both.
"""


@pytest.mark.alone
@pytest.mark.parametrize(("moment", "number", "whole_group"), ENDS)
def test_washp2p_run_leaves_nobody_behind(tmp_path, moment, number, whole_group):
    command_line = ["-m", "washp2p", "run", "--n=2", f"--run-dir={tmp_path / 'run'}", *LONG]
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup a run would ignore it, too
    try:
        launched = subprocess.Popen(
            [sys.executable, *command_line],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, ours)
    with launched as launcher:
        for line in launcher.stdout:
            if moment in line:
                break
        pids = processes_in(launcher.pid)
        assert launcher.pid in pids
        began = time.monotonic()
        (os.killpg if whole_group else os.kill)(launcher.pid, number)
        launcher.stdout.read()
        assert launcher.wait(5) == 130
        assert time.monotonic() - began < 2
    assert all(map(gone, pids))


def test_washp2p_run_ends_when_the_process_that_forks_workers_is_killed(tmp_path):
    with launched(tmp_path / "run", *LONG, session=True) as launcher:
        for line in launcher.stdout:
            if "epoch 1" in line:
                break
        pids = processes_in(launcher.pid)
        (forking,) = (
            pid
            for pid in pids
            if b"workers.fork" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and parent_of(pid) == launcher.pid
        )
        os.kill(forking, signal.SIGKILL)
        _, errors = launcher.communicate(timeout=40)
        assert launcher.returncode == 1
    assert "worker: killed by SIGKILL" in errors
    assert "Traceback" not in errors
    assert all(map(gone, pids))


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes_in(session):
    """The ids of all processes in a session."""
    stats = Path("/proc").glob("[0-9]*/stat")
    return [int(stat.parent.name) for stat in stats if session_of(stat) == session]


def session_of(status):
    try:
        return int(status.read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_washp2p_run_reports_a_worker_that_cannot_start(tmp_path):
    code, stderr = command(
        "washp2p", "run", "--n=2", "--devices=abacus", f"--run-dir={tmp_path / 'r'}"
    )
    assert code == 2
    assert "expected cpu, cuda or cuda:N" in stderr


@contextlib.contextmanager
def launched(folder, *flags, session=False):
    """`washp2p run` with three members; in a session of its own, if wanted."""
    flags = ["--n=3", "--epochs=4", "--p=0.05", f"--run-dir={folder}", *flags]
    with subprocess.Popen(
        [sys.executable, "-m", "washp2p", "run", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=session,
    ) as launcher:
        yield launcher


def test_washp2p_run_goes_on_without_a_worker_that_is_killed(tmp_path):
    folder = tmp_path / "run"
    with launched(folder) as launcher:
        pid = 0
        for line in launcher.stdout:
            if "joined (2 of 3)" in line:
                pid = int(line.split("process ")[1].partition(")")[0])
            if "epoch 1" in line:
                break
        os.kill(pid, signal.SIGKILL)
        output, errors = launcher.communicate(timeout=60)
        assert launcher.returncode == 0, errors
    assert "worker: killed by SIGKILL" in errors
    assert "the others go on" in errors
    assert "died: its connection is closed; the roster is without it" in " ".join(output.split())
    assert json.loads((folder / "summary.json").read_text())["averaged_over"] != [0, 1, 2]


def test_nothing_to_go_on_from(runs, tmp_path):
    coordinator = runs.coordinator("--n=2")
    coordinator.kill()
    code, errors = command("washp2p", "run", f"--resume={coordinator.folder}")
    assert code == 2
    assert "has no checkpoint yet; start anew" in errors
    code, errors = command("coordinator", f"--resume={coordinator.folder}")
    assert code == 2
    assert "had not begun, there is nothing to go on from" in errors


def test_washp2p_run_is_interrupted_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    with launched(folder, "--checkpoint-epochs=1") as launcher:
        for line in launcher.stdout:
            if "all members have a checkpoint of round 80" in line:
                break
        os.kill(launcher.pid, signal.SIGINT)
        launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    code, errors = command("coordinator", f"--run-dir={folder}")
    assert code == 2
    assert "has ended: the coordinator was interrupted; --resume it" in errors
    code, errors = command("washp2p", "run", f"--resume={folder}", "--p=0.5")
    assert code == 2
    assert "--p is 0.5; the run there has 0.05" in errors
    code, errors = command("washp2p", "run", f"--resume={folder}")
    assert code == 0, errors
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["averaged_over"] == [0, 1, 2]
    assert [row["steps"] for row in summary["bytes"]] == [160] * 3
    code, errors = command("washp2p", "run", f"--resume={folder}")
    assert code == 2
    assert "holds a run that has finished" in errors
    code, errors = command("coordinator", f"--run-dir={folder}")
    assert code == 2
    assert "already holds a run; choose another --run-dir" in errors


def test_a_run_that_ended_before_its_first_checkpoint_cannot_be_gone_on_with(runs):
    coordinator, workers = runs.population(2, *LONG)
    coordinator.until("epoch 1")
    coordinator.process.send_signal(signal.SIGINT)
    assert coordinator.wait() == 130
    assert [worker.wait() for worker in workers] == [130, 130]
    again = runs.coordinator(resume=True)
    assert again.wait() == 2
    assert "ended before its first checkpoint, there is nothing to go on from" in again.text
