"""What late values cost: every round applied exactly S steps late, by either rule.

    python -m benchmarks.delay

Fashion-MNIST, simulated in one process. Resumes: finished cells are kept in runs/delay/.
"""

from __future__ import annotations

import sys
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch

from benchmarks.record import kept, record, run, spread
from washp2p.config.config import RunConfig
from workers.simulation.script import exactly_late
from workers.simulation.simulate import SimulatedPopulation, everyone
from workers.training.data import load_data
from workers.training.evaluate import evaluate_population

if TYPE_CHECKING:
    from collections.abc import Sequence

DELAYS = (0, 1, 8, 64)
SEEDS = range(3)
CELLS = Path("runs/delay")
COLUMNS = ("members", "ensemble", "averaged", "drift", "consensus")


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All parameters, end to end, in double precision."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()


class Drift:
    """How far shuffling itself has moved the population's mean: the sum of its moves, by scalar."""

    def __init__(self, population: SimulatedPopulation) -> None:
        self._models = [trainer.model for trainer in population.trainers.values()]
        self.moved = torch.zeros_like(flat(self._models[0]))
        self._apply = population.reference.apply
        population.reference.apply = self._watched  # type: ignore[method-assign]  # to look on

    def _watched(
        self, member: int, number: int, senders: Sequence[int] | None = None, leg: int = 0
    ) -> None:
        before = flat(self._models[member])
        self._apply(member, number, senders, leg)
        self.moved += (flat(self._models[member]) - before) / len(self._models)


def cell(delay: int, late: str, seed: int) -> dict[str, float]:
    """One population: accuracies in per cent, drift and mean distance to consensus (L2)."""
    torch.set_num_threads(1)
    config = RunConfig.resolve(
        n=3,
        data="fashion-mnist",
        train_limit=6000,
        p=0.01,
        epochs=12,
        seed=seed,
        max_delay=str(delay),
        late=late,
    )
    data = load_data(config, Path("data"), download=False)
    population = SimulatedPopulation(config, data, everyone(config))
    drift = Drift(population)
    steps = population.trainers[0].steps
    population.train(dict.fromkeys(population.members, exactly_late(steps, delay)), lambda _: None)
    models = [trainer.model for trainer in population.trainers.values()]
    vectors = torch.stack([flat(model) for model in models])
    states = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    averaged = {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}
    found = evaluate_population(models[0], states, averaged, data, torch.device("cpu"))
    return {
        "members": mean(found["members"]),
        "ensemble": found["ensemble"],
        "averaged": found["averaged"],
        "drift": float(drift.moved.norm()),
        "consensus": float((vectors - vectors.mean(0)).norm(dim=1).mean()),
    }


def main() -> None:
    """Run what is missing and record the table."""
    rows = []
    settings = [(0, "overwrite")]
    settings += [(d, rule) for d in DELAYS if d for rule in ("overwrite", "difference")]
    for delay, late in settings:
        results = [
            kept(CELLS / f"{delay}-{late}-{seed}.json", partial(cell, delay, late, seed))
            for seed in SEEDS
        ]
        cells = []
        for column in COLUMNS:
            values = [result[column] for result in results]
            finite = all(map(isfinite, values))
            cells.append(spread(values) if finite else "diverged")
        rows.append([delay, late if delay else "(assignment)", *cells])
    record(
        "delay",
        "Rounds applied exactly S steps late",
        ["S", "rule", "mean member", "Ensemble", "Averaged", "drift", "distance to consensus"],
        rows,
        "Fashion-MNIST, 6,000 images, N = 3, p = 0.01, 12 epochs, simulated; mean ± standard "
        "deviation over 3 seeds, accuracies in per cent. Drift: the L2 norm of the sum of all "
        "moves of the population's mean that shuffling made. Distance to consensus: mean L2 "
        "distance of a member from the mean.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="hours"))
