"""A lockstep round among more and more members of this machine: messages, bytes, CPU.

python -m benchmarks.growth
"""

from __future__ import annotations

import sys
import time
from statistics import mean

import torch

import washp2p
from benchmarks.exchange import Nothing
from benchmarks.record import record, run
from benchmarks.throughput import mlp
from tests.support.population import coordinator, in_processes
from washp2p.protocol.ledger import Kind

P = 0.001
ROUNDS = 60
SIZES = {2: (0,), 4: (0, 2), 8: (0, 4), 16: (0, 4), 24: (0, 4)}
"""By N: the largest group, 0 for all in one."""


def work(rank: int, address: str) -> list[float]:
    """One member: messages, payload and header bytes, CPU and wall milliseconds, a round."""
    model = mlp()
    optimizer = Nothing(model.parameters(), lr=0.1)
    with washp2p.join(address, model, optimizer) as member:
        for _ in range(20):
            optimizer.step()
        before = member.ledger.total(Kind.EXCHANGE)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(ROUNDS):
            optimizer.step()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        after = member.ledger.total(Kind.EXCHANGE)
    return [
        (after.messages - before.messages) / ROUNDS,
        (after.payload - before.payload) / ROUNDS,
        (after.header - before.header) / ROUNDS,
        1e3 * cpu / ROUNDS,
        1e3 * wall / ROUNDS,
    ]


def main() -> None:
    """Measure and record."""
    parameters = sum(p.numel() for p in mlp().parameters())
    rows = []
    for n, groups in SIZES.items():
        for group in groups:
            with coordinator(
                f"--n={n}", f"--p={P}", "--max-delay=0", f"--group={group}"
            ) as address:
                found = in_processes(n, work, address)
            messages, payload, header, cpu, wall = (
                mean(column) for column in zip(*found, strict=True)
            )
            rows.append(
                [
                    *(n, group or "all", f"{messages:.2f}", f"{payload:,.0f}", f"{header:.0f}"),
                    *(f"{cpu:.2f}", f"{wall:.1f}"),
                ]
            )
    record(
        "growth",
        "A round among more and more members",
        ["N", "group", "messages", "payload, bytes", "headers, bytes", "CPU ms", "wall ms"],
        rows,
        f"A member's means over {ROUNDS} lockstep rounds, an MLP of {parameters / 1e6:.1f} M "
        f"parameters, p = {P}; all members on this machine, so that wall time is CPU time of all "
        "over its cores. CPU includes deriving plans and ZeroMQ.",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(main, takes="a few minutes"))
