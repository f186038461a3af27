"""The memory that being a member takes, besides the model and its training.

    python -m benchmarks.memory

ResNet-50 (25.6 M parameters) trained by two members, and by nobody's member in the same way:
resident memory as the kernel counts it.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy

import washp2p
from benchmarks.record import record, run
from tests.support.population import coordinator, in_processes
from washp2p.protocol.ledger import Kind
from washp2p.transports.listening import listen
from workers.training.models import build_model

N = 2
P = 0.001
STEPS = 40
REPEATS = 3
BAR = 0.05
PEERS = 200


def resident() -> tuple[float, float]:
    """MB of this process in memory now, and at most since the last call."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(status[key].split()[0]) / 1000 for key in ("VmRSS", "VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return now, peak


def work(rank: int, address: str | None) -> list[float]:
    """One process: MB when trained, at most before (a member: from joining on), and averaging."""
    torch.manual_seed(0)
    model = build_model("resnet50", (3, 32, 32), 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = torch.randn(8, 3, 32, 32), torch.randint(1000, (8,))
    resident()
    with washp2p.join(address, model, optimizer) if address else nullcontext() as member:
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        trained, peak = resident()
        if member is not None:
            member.average()
    _, averaging = resident()
    return [trained, peak, averaging]


def of_a_peer(_: int) -> float:
    """KB that a link to a peer and one from it take at one end, by 200 of them in one process."""
    hub, *others = (listen("tcp://127.0.0.1:*") for _ in range(PEERS + 1))
    before = resident()[0]
    for number, other in enumerate(others):
        for sender, receiver, peer in ((hub, other, number), (other, hub, 0)):
            sender.connect(peer, receiver.endpoint)
            sender.send(peer, Kind.EXCHANGE, b"header", [memoryview(bytes(2000))])
    for transport in (hub, *others):
        for _ in range(PEERS if transport is hub else 1):
            transport.receive(10)
    after = resident()[0]
    for transport in (hub, *others):
        transport.close()
    return 1e3 * (after - before) / PEERS / 2


def main() -> None:
    """Measure and record."""
    alone, members = [], []
    for _ in range(REPEATS):
        alone.append(in_processes(1, work, None)[0])
        with coordinator(f"--n={N}", f"--p={P}", "--max-delay=4") as address:
            members.append(in_processes(N, work, address)[0])
    plain, member = (
        [median(column) for column in zip(*found, strict=True)] for found in (alone, members)
    )
    peer = in_processes(1, of_a_peer)[0]
    parameters = 4e-6 * sum(
        p.numel() for p in build_model("resnet50", (3, 32, 32), 1000).parameters()
    )
    rows = [
        [what, f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}", f"{(b - a) / parameters:+.1%}"]
        for what, a, b in zip(
            ("after training", "at most, training", "at most, averaging"),
            plain,
            member,
            strict=True,
        )
    ]
    record(
        "memory",
        "Memory that being a member takes",
        ["resident memory", "alone, MB", "member, MB", "difference", "of the parameters"],
        rows,
        f"ResNet-50, {parameters:.1f} MB of parameters, {STEPS} steps of SGD with momentum, batch "
        f"8 at 32x32, N = {N}, p = {P}, --max-delay 4; medians of {REPEATS} runs of each in turn. "
        f"The bar while training is {BAR:.0%}. Averaging, at the end, makes the averaged model "
        f"beside one's own. Each peer takes {peer:.0f} kB for a link each way ({PEERS} peers).",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="a few minutes"))
