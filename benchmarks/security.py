"""What keys cost.

    python -m benchmarks.security rounds      # lockstep rounds with keys and without, alternating
    python -m benchmarks.security training    # steps a second under `auto`, with keys and without

In each, the variants take turns in blocks in the same processes, and ratios are of such turns.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import washp2p
from benchmarks.exchange import Nothing, timed
from benchmarks.record import record, run
from benchmarks.throughput import mlp, training
from tests.support.population import coordinator, gather, in_processes, rendezvous
from washp2p.sockets import keys
from workers.training.models import build_model

if TYPE_CHECKING:
    from washp2p import Member

MODEL, P = "resnet18", 0.001
STEPS, BLOCKS = 100, 40
"""Steps in a block, blocks."""

Found = dict[str, list[float]]
Make = Callable[[str, Path | None], tuple["Member", Callable[[], object]]]


def bare(address: str, own: Path | None) -> tuple[Member, Callable[[], object]]:
    """A member whose steps do nothing but their rounds."""
    torch.manual_seed(0)
    model = build_model(MODEL, (3, 32, 32), 10)
    optimizer = Nothing(model.parameters(), lr=0.1)
    return washp2p.join(address, model, optimizer, keys=own), optimizer.step


def trained(address: str, own: Path | None) -> tuple[Member, Callable[[], object]]:
    """A member that trains."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return washp2p.join(address, model, optimizer, keys=own), training(model, optimizer, 24)


def alternate(
    rank: int, addresses: dict[str, str], folder: str, world: tuple[str, int], make: Make
) -> Found:
    """One rank: milliseconds a step in each block, by variant."""
    gather(rank, *world)
    found: Found = {}
    with ExitStack() as stack:
        step = {}
        for name, address in addresses.items():
            member, step[name] = make(address, Path(folder) if name == "keys" else None)
            stack.enter_context(member)
        for block in range(BLOCKS + 1):
            for name in addresses:
                took, _ = timed(step[name], STEPS)
                if block:
                    found.setdefault(name, []).append(took)
    dist.destroy_process_group()
    return found


def compare(what: str, make: Make, n: int, *flags: str) -> list[object]:
    """A row: plain text against keys."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keys.make(Path(folder), anew=False)
        every = (f"--n={n}", f"--p={P}", *flags)
        addresses = {
            "plain": stack.enter_context(coordinator(*every)),
            "keys": stack.enter_context(coordinator(*every, f"--keys={folder}")),
        }
        world = rendezvous(make.__name__), n
        found = in_processes(n, alternate, addresses, folder, world, make)[0]
    assert isinstance(found, dict)
    ratios = [b / a for a, b in zip(found["plain"], found["keys"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return [
        what,
        n,
        f"{median(found['plain']):.3f}",
        f"{median(found['keys']):.3f}",
        f"{middle:.3f} ({low:.3f} to {high:.3f})",
        len(ratios),
    ]


def main(what: str) -> None:
    """Measure `what`, rounds or training, and record it."""
    row = {
        "rounds": lambda: compare("lockstep rounds", bare, 4, "--max-delay=0"),
        "training": lambda: compare("training, auto", trained, 2, "--max-delay=auto"),
    }[what]()
    record(
        f"keys-{what}",
        f"What keys cost: {row[0]}",
        ["what", "N", "ms, plain", "ms, with keys", "ratio", "blocks"],
        [row],
        "Rounds: ResNet-18 (11.2 M parameters), p = 0.001, schedule decreasing, steps that do "
        "nothing, on loopback; bar 1.15. Training: an MLP of 4.2 M parameters, p = 0.001, SGD with "
        "momentum, one thread a process; bar 1.01. Medians; ratios of blocks in turn, with "
        "quartiles. On the wire keys add 33 bytes to a message (tests/transports).",
    )


if __name__ == "__main__":
    sys.exit(
        run(
            {"rounds": partial(main, "rounds"), "training": partial(main, "training")},
            takes="about ten minutes",
        )
    )
