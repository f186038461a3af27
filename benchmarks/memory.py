"""The memory that being a member takes, besides the model and its training.

    python -m benchmarks.memory

ResNet-50 (25.6 M parameters) trained by two members, and by nobody's member in the same way:
resident memory as the kernel counts it.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy

import washp2p
from benchmarks.population import coordinator, in_processes
from benchmarks.record import record
from workers.models import build_model

N = 2
P = 0.001
STEPS = 40
REPEATS = 3
BAR = 0.05


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
        "beside one's own.",
    )


if __name__ == "__main__":
    main()
