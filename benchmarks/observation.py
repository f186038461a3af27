"""What it costs to look at a run: steps a second with all that can look, against with nothing.

    python -m benchmarks.observation

Two processes of one thread train two populations in turn, block by block. One is looked at in every
way there is: members say every second how it goes, the coordinator writes curves, TensorBoard and
JSON, a browser's requests are made for its page, coordinator and members are scraped. In the other
members say nothing. Requests are made only while their population is in turn; what the coordinators
do by themselves goes on all the time, and is told as their CPU time.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from random import choices
from statistics import median, stdev
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import multiprocessing

import washp2p
from benchmarks.record import record, run
from benchmarks.throughput import mlp, training
from tests.support.population import coordinator_process, gather, in_processes, rendezvous
from washp2p.metrics import Exporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Event

N = 2
P = 0.001
BATCH = 24
STEPS = 66
"""About a second's."""
BLOCKS = 300
SCRAPE_SECONDS = 5.0
"""As deploy/monitoring/prometheus.yml has it."""
VARIANTS = ("nobody looks", "all look")
QUIET = ("--log=text",)
WATCHED = ("--log=json", "--tensorboard", "--http=127.0.0.1:18080")
PAGE = "http://127.0.0.1:18080"
EXPORTERS = [f"127.0.0.1:{18081 + rank}" for rank in range(N)]
ASKED = {
    f"{PAGE}/status.json": 1.0,
    f"{PAGE}/history.json?after=0": 3.0,
    f"{PAGE}/metrics": SCRAPE_SECONDS,
    **{f"http://{address}/metrics": SCRAPE_SECONDS for address in EXPORTERS},
}
"""What a page asks for, and Prometheus, and every how many seconds."""


def look(turn: Event) -> None:
    """Ask for all that is served, each as often as it is asked for, while it is their turn."""
    due = dict.fromkeys(ASKED, 0.0)
    while True:
        turn.wait()
        address = min(due, key=lambda each: due[each])
        time.sleep(max(0.0, due[address] - time.monotonic()))  # the pace of requests
        due[address] = time.monotonic() + ASKED[address]
        if turn.is_set():
            with urllib.request.urlopen(address, timeout=10) as answer:
                answer.read()


def work(rank: int, coordinators: list[str], store: str, looking: Event) -> dict[str, list[float]]:
    """One rank: by variant, seconds a step in each block, the slower rank's; and of its CPU."""
    gather(rank, store, N)
    found: dict[str, list[float]] = {name: [] for name in (*VARIANTS, *map(cpu, VARIANTS))}
    steps: list[Callable[[], None]] = []
    with ExitStack() as stack:
        exporter = Exporter(EXPORTERS[rank])
        stack.callback(exporter.close)
        for name, address in zip(VARIANTS, coordinators, strict=True):
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            member = stack.enter_context(washp2p.join(address, model, optimizer))
            if name == VARIANTS[0]:
                _silence(member)
            else:
                exporter.watch(member, "run")
            steps.append(training(model, optimizer, BATCH))
        for block in range(BLOCKS + 1):
            order = (0, 1) if block % 2 else (1, 0)
            for turn in order:
                dist.barrier()
                if rank == 0 and turn:
                    looking.set()
                dist.barrier()
                began, busy = time.perf_counter(), time.process_time()
                for _ in range(STEPS):
                    steps[turn]()
                took = torch.tensor((time.perf_counter() - began) / STEPS)
                busy = (time.process_time() - busy) / STEPS
                looking.clear()
                dist.all_reduce(took, dist.ReduceOp.MAX)
                if block:
                    found[VARIANTS[turn]].append(float(took))
                    found[cpu(VARIANTS[turn])].append(busy)
        dist.barrier()
    dist.destroy_process_group()
    return found


def cpu(variant: str) -> str:
    """Under what name a variant's CPU time is kept."""
    return f"{variant}, CPU"


def used(process: int) -> float:
    """CPU seconds that a process has used."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _silence(member: Any) -> None:
    """Have a member say nothing of how it goes: there is no flag for that."""
    member._lifecycle.core._tell = lambda: None


def against(its: list[float], other: list[float]) -> str:
    """The median of ratios, block by block, with twice its standard error, by the bootstrap."""
    ratios = [a / b for a, b in zip(its, other, strict=True)]
    draws = [median(choices(ratios, k=len(ratios))) for _ in range(1000)]
    return f"{median(ratios):.4f} ± {2 * stdev(draws):.4f}"


def main() -> None:
    """Measure and record."""
    flags = (f"--n={N}", f"--p={P}")
    with ExitStack() as stack:
        coordinators = [
            stack.enter_context(coordinator_process(*flags, *more)) for more in (QUIET, WATCHED)
        ]
        before = [used(process) for _, process in coordinators]
        began = time.monotonic()
        addresses = [address for address, _ in coordinators]
        context = multiprocessing.get_context("forkserver")
        looking = context.Event()
        browser = context.Process(target=look, args=(looking,), daemon=True)
        browser.start()
        found = in_processes(N, work, addresses, rendezvous("observation"), looking)[0]
        browser.kill()
        seconds = time.monotonic() - began
        after = [used(process) for _, process in coordinators]
    assert isinstance(found, dict)
    rows = []
    for name, begun, ended in zip(VARIANTS, before, after, strict=True):
        rows.append(
            [
                name,
                f"{1e3 * median(found[name]):.2f}",
                against(found[name], found[VARIANTS[0]]),
                against(found[cpu(name)], found[cpu(VARIANTS[0])]),
                f"{100 * (ended - begun) / seconds:.1f} %",
            ]
        )
    record(
        "observation",
        "What it costs to look at a run",
        ["variant", "ms a step", "time", "CPU time of a member", "coordinator, of a core"],
        rows,
        f"N = {N} processes of one thread, an MLP of 4.2 M parameters, p = {P}; {BLOCKS} blocks of "
        f"{STEPS} steps of each, in turn, the slower process's; medians, and medians of ratios "
        "block by block, ± two standard errors. Looking: vitals once a second, curves, "
        "TensorBoard, JSON logs; the page's requests every second and every three; Prometheus at "
        f"coordinator and members every {SCRAPE_SECONDS:g} s.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about half an hour"))
