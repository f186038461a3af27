"""What late rounds do to the distance between members, with nothing else going on (equation 5).

    python -m benchmarks.distance

A permutation keeps the members' squared distance from their mean. Values that arrive late overwrite
what has been shuffled since: some are held twice, others by nobody, and the distance shrinks.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.record import record, run
from washp2p.protocol.roster import round_seed, run_key
from workers.simulation.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

N, D, ROUNDS = 3, 30_000, 200
GRID = [(p, delay) for p in (0.001, 0.005, 0.05) for delay in (0, 1, 4, 16)]


def kept(p: float, delay: int, seed: int = 0) -> float:
    """The share of the squared distance left after ROUNDS rounds, each applied `delay` late."""
    torch.manual_seed(seed)
    models = [torch.nn.Linear(D, 1, bias=False, dtype=torch.float64) for _ in range(N)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    reference = Reference(models, optimizers, method="wash", schedule="constant", p=p)
    before = squared_distance(models)
    key = run_key(seed)
    for number in range(1, ROUNDS + delay + 1):
        for member in range(N):
            if number <= ROUNDS:
                reference.gather(member, number, round_seed(key, number))
        for member in range(N):
            if number > delay:
                reference.apply(member, number - delay)
        reference.forget([number - delay])
    return squared_distance(models) / before


def squared_distance(models: Sequence[torch.nn.Module]) -> float:
    """Of the members from their mean, summed."""
    flat = np.stack([next(model.parameters()).detach().numpy().reshape(-1) for model in models])
    return float(((flat - flat.mean(0)) ** 2).sum())


def main() -> None:
    """Measure and record."""
    rows = [[p, delay, f"{p * delay:g}", f"{kept(p, delay):.3f}"] for p, delay in GRID]
    record(
        "distance",
        "Squared distance from the mean that is kept, by p and delay",
        ["p", "S", "p S", f"kept after {ROUNDS} rounds"],
        rows,
        f"N = {N}, d = {D:,} scalars, no training: {ROUNDS} rounds, each applied exactly S rounds "
        "late by overwriting. Lockstep (S = 0) keeps all of it.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about a minute"))
