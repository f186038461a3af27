"""What a fault costs: how long it takes to be noticed and mended, and what it does to the average.

    python -m benchmarks.reliability times
    python -m benchmarks.reliability accuracy

Real processes on loopback, killed and stopped by signals. `accuracy` trains the digits with one of
five members killed and another joining, and the same without.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

import washp2p
import workers.__main__
from benchmarks.record import record, run, spread
from tests.support.population import start_coordinator
from washp2p.errors import DroppedError
from workers.fork import PRELOADED

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

RUNS = 20
N = 3
STEP = 0.005
"""Seconds of a step."""
SEEDS = range(5)


class Coordinator:
    """A coordinator process, and what it prints."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.process, self.address = start_coordinator(
            *flags, folder=folder, stdout=subprocess.PIPE
        )

    def until(self, words: str) -> str:
        """The next line that has `words`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return line
        raise RuntimeError(f"the coordinator never printed {words!r}")


def member(address: str, times: Connection) -> None:
    """Steps for ever; sends how long the longest pause between two of them was when asked to."""
    torch.set_num_threads(1)
    while True:
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        try:
            with washp2p.join(address, model, optimizer):
                longest, last = 0.0, time.monotonic()
                while True:
                    for parameter in model.parameters():
                        parameter.grad = torch.zeros_like(parameter)
                    time.sleep(STEP)  # what a step computes
                    optimizer.step()
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
                    if times.poll():
                        times.recv()
                        times.send(longest)
                        longest = 0.0
        except DroppedError:
            continue


def one_fault(number: signal.Signals) -> dict[str, float]:
    """Seconds until a member that gets the signal is dropped, and what follows."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "washp2p.driver.joining"])
    with tempfile.TemporaryDirectory() as temporary:
        coordinator = Coordinator(Path(temporary) / "run", f"--n={N}", "--p=0.05", "--max-delay=0")
        pipes = [context.Pipe() for _ in range(N)]
        workers = [
            context.Process(target=member, args=(coordinator.address, theirs))
            for _, theirs in pipes
        ]
        try:
            for worker in workers:
                worker.start()
            coordinator.until("training begins")
            time.sleep(1)  # of training undisturbed: seeds ahead, links warm
            for ours, _ in pipes:
                ours.send(None)
                ours.recv()
            assert workers[0].pid is not None
            began = time.monotonic()
            os.kill(workers[0].pid, number)
            coordinator.until("going on with")
            found = {"noticed": time.monotonic() - began}
            time.sleep(0.5)  # so that the others have taken steps again
            for ours, _ in pipes[1:]:
                ours.send(None)
            found["others waited"] = max(ours.recv() for ours, _ in pipes[1:])
            if number == signal.SIGSTOP:
                began = time.monotonic()
                os.kill(workers[0].pid, signal.SIGCONT)
                coordinator.until("takes part")
                found["back"] = time.monotonic() - began
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
            coordinator.process.kill()
            coordinator.process.communicate()
    return found


def times() -> None:
    """Noticing and mending, RUNS times each."""
    rows = []
    for number in (signal.SIGKILL, signal.SIGSTOP):
        found = [one_fault(number) for _ in range(RUNS)]
        for what in found[0]:
            seconds = [one[what] for one in found]
            rows.append(
                [number.name, what, f"{median(seconds):.2f}", f"{max(seconds):.2f}", f"{RUNS}"]
            )
    record(
        "recovery",
        "How long a lost member takes to be noticed, and to be back",
        ["signal", "what", "median, s", "max, s", "runs"],
        rows,
        f"One of N = {N} members in lockstep, steps of {1000 * STEP:g} ms, patience 5 s, all on "
        "loopback. `noticed`: until the others have a roster without it; `others waited`: the "
        "longest time between two steps of any of the others; `back`: from SIGCONT to the roster "
        "that has it again, with a live member's state.",
    )


def worker(flags: list[str]) -> None:
    """`python -m workers`, in a process that has PyTorch loaded already."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(workers.__main__.main(flags))


def disturbed(folder: Path, seed: int, *, disturb: bool) -> dict[str, object]:
    """A run of five members; its summary. With `disturb` one is killed and another joins."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    coordinator = Coordinator(folder, "--n=5", f"--seed={seed}")
    flags = [f"--coordinator={coordinator.address}", f"--run-dir={folder}", "--threads=1"]
    members = [context.Process(target=worker, args=(flags,)) for _ in range(6)]
    *first, newcomer = members
    try:
        for process in first:
            process.start()
        if disturb:
            coordinator.until("epoch 3")
            first[2].kill()
            coordinator.until("going on with 4 of 5")
            newcomer.start()
            coordinator.until("takes part")
        coordinator.process.communicate(timeout=120)
        if coordinator.process.returncode:
            raise RuntimeError(f"the coordinator ended with {coordinator.process.returncode}")
    finally:
        for process in members:
            if process.pid is not None:
                process.join(20)
                process.kill()
        coordinator.process.kill()
        coordinator.process.wait()
    summary: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return summary


def accuracy() -> None:
    """The averaged model of runs with and without a loss and a newcomer."""
    rows = []
    for disturb in (False, True):
        columns: dict[str, list[float]] = {}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as temporary:
                summary = disturbed(Path(temporary) / "run", seed, disturb=disturb)
            found = summary["accuracy"]
            assert isinstance(found, dict)
            for key in ("ensemble", "averaged"):
                columns.setdefault(key, []).append(found[key])
            lost = summary["lost_values"]
            assert isinstance(lost, int)
            columns.setdefault("lost", []).append(lost)
        rows.append(
            [
                "one killed, another joins" if disturb else "undisturbed",
                *(spread(columns[key]) for key in ("ensemble", "averaged")),
                f"{median(columns['lost']):,.0f}",
            ]
        )
    record(
        "churn",
        "Accuracy with a member killed and another joining",
        ["run", "Ensemble", "Averaged", "values lost, median"],
        rows,
        f"`digits`, N = 5, 12 epochs, defaults; seeds {min(SEEDS)} to {max(SEEDS)}; mean ± "
        "standard deviation of test accuracy in per cent. A member is killed (SIGKILL) when the "
        "first one has done three epochs; then a fresh worker joins.",
    )


if __name__ == "__main__":
    sys.exit(run({"times": times, "accuracy": accuracy}, takes="tens of minutes"))
