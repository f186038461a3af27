"""What it costs to look at a run: steps a second with all that can look, against with nothing.

    python -m benchmarks.observation

Two processes of one thread train two populations in turn, block by block. One is looked at in every
way there is: members say every second how it goes, the coordinator writes curves, TensorBoard and
JSON, a browser's requests are made for its page, coordinator and members are scraped. In the other
members say nothing. A coordinator whose population is not in turn is stopped (SIGSTOP).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from contextlib import ExitStack
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

import washp2p
from benchmarks.population import coordinator_process, gather, in_processes, rendezvous
from benchmarks.record import record
from benchmarks.throughput import mlp, training
from washp2p.metrics import Exporter

if TYPE_CHECKING:
    from collections.abc import Callable

N = 2
P = 0.001
BATCH = 24
STEPS = 150
BLOCKS = 40
SCRAPE_SECONDS = 5.0
"""As deploy/monitoring/prometheus.yml has it."""
VARIANTS = ("nobody looks", "all look")
QUIET = ("--log=text",)
WATCHED = ("--log=json", "--tensorboard", "--http=127.0.0.1:18080")
PAGE = "http://127.0.0.1:18080"
ASKED = {"/status.json": 1.0, "/history.json?after=0": 3.0, "/metrics": SCRAPE_SECONDS}
"""What a page asks for, and Prometheus, and every how many seconds."""


class Looking:
    """Asks for addresses, each every so many seconds, while `on`."""

    def __init__(self, addresses: dict[str, float]) -> None:
        self._addresses = addresses
        self._on = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def turn(self, *, on: bool) -> None:
        """Begin, or pause."""
        (self._on.set if on else self._on.clear)()

    def _run(self) -> None:
        due = dict.fromkeys(self._addresses, 0.0)
        while True:
            self._on.wait()
            address = min(due, key=lambda each: due[each])
            time.sleep(max(0.0, due[address] - time.monotonic()))
            due[address] = time.monotonic() + self._addresses[address]
            if self._on.is_set():
                with urllib.request.urlopen(address, timeout=10) as answer:
                    answer.read()


def work(rank: int, coordinators: list[tuple[str, int]], store: str) -> dict[str, list[float]]:
    """One rank: by variant, seconds a step in each block, the slower rank's."""
    gather(rank, store, N)
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    steps: list[Callable[[], None]] = []
    with ExitStack() as stack:
        exporter = Exporter("127.0.0.1:*")
        stack.callback(exporter.close)
        for name, (address, _) in zip(VARIANTS, coordinators, strict=True):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            member = stack.enter_context(washp2p.join(address, model, optimizer))
            if name == VARIANTS[0]:
                _silence(member)
            else:
                exporter.watch(member, "run")
            steps.append(training(model, optimizer, BATCH))
        asked = {exporter.address: SCRAPE_SECONDS}
        if rank == 0:
            asked |= {PAGE + path: every for path, every in ASKED.items()}
        looking = Looking(asked)
        processes = [process for _, process in coordinators]
        for block in range(BLOCKS + 1):
            order = (0, 1) if block % 2 else (1, 0)
            for turn in order:
                dist.barrier()
                if rank == 0:
                    os.kill(processes[1 - turn], signal.SIGSTOP)
                    os.kill(processes[turn], signal.SIGCONT)
                looking.turn(on=turn == 1)
                dist.barrier()
                began = time.perf_counter()
                for _ in range(STEPS):
                    steps[turn]()
                took = torch.tensor((time.perf_counter() - began) / STEPS)
                looking.turn(on=False)
                dist.all_reduce(took, dist.ReduceOp.MAX)
                if block:
                    found[VARIANTS[turn]].append(float(took))
        dist.barrier()
        if rank == 0:
            for process in processes:
                os.kill(process, signal.SIGCONT)
    dist.destroy_process_group()
    return found


def _silence(member: Any) -> None:
    """Have a member say nothing of how it goes: there is no flag for that."""
    member._tell = lambda: None


def main() -> None:
    """Measure and record."""
    flags = (f"--n={N}", f"--p={P}", "--patience=3600")
    with ExitStack() as stack:
        coordinators = [
            stack.enter_context(coordinator_process(*flags, *more)) for more in (QUIET, WATCHED)
        ]
        found = in_processes(N, work, coordinators, rendezvous("observation"))[0]
    assert isinstance(found, dict)
    quiet, watched = (found[name] for name in VARIANTS)
    ratios = [b / a for a, b in zip(quiet, watched, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    rows = [
        [VARIANTS[0], f"{1e3 * median(quiet):.2f}", ""],
        [VARIANTS[1], f"{1e3 * median(watched):.2f}", f"{middle:.4f} ({low:.4f} to {high:.4f})"],
    ]
    record(
        "observation",
        "What it costs to look at a run",
        ["variant", "ms a step", "time, of the other's"],
        rows,
        f"N = {N} processes of one thread, an MLP of 4.2 M parameters, p = {P}; {BLOCKS} blocks of "
        f"{STEPS} steps of each, in turn, the slower process's; medians and quartiles. Looking: "
        "vitals once a second, curves, TensorBoard, JSON logs; the page's requests every second "
        f"and every three; Prometheus at coordinator and members every {SCRAPE_SECONDS:g} s.",
    )


if __name__ == "__main__":
    main()
