"""Members of unequal speed: one is slowed to a third, and nobody waits for it.

    python -m benchmarks.unequal

Fashion-MNIST, real processes on this machine. Resumes: finished runs are kept in runs/unequal/.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import washp2p
from benchmarks.record import record, run, spread
from tests.support.population import coordinator, in_processes
from workers.training.data import load_data
from workers.training.evaluate import evaluate_population
from workers.training.trainer import Trainer

N = 3
SLOWED = 3
SEEDS = range(3)
RUNS = Path("runs/unequal")
SETTINGS = {
    "equal speed, none": ("none", False),
    "one slowed 3x, none": ("none", True),
    "one slowed 3x, auto": ("auto", True),
}


class Slow:
    """Makes a training loop take SLOWED times as long, by sleeping before each optimizer step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._since = time.monotonic()
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_: object) -> None:
        # Being slow is what this is about.
        time.sleep((SLOWED - 1) * (time.monotonic() - self._since))  # to be slow

    def _after(self, *_: object) -> None:
        self._since = time.monotonic()


def work(rank: int, address: str, slowed: bool) -> None:
    """One member, from joining to the average; the last to start is the slow one."""
    connection = washp2p.connect(address)
    data = load_data(connection.config, Path("data"), download=False)
    trainer = Trainer(connection.config, data, connection.member, torch.device("cpu"))
    with washp2p.join(connection, trainer.model, trainer.optimizer, rounds=trainer.steps) as member:
        if slowed and rank == N - 1:
            Slow(trainer.optimizer)
        with trainer.streams.active():
            for _ in trainer.train():
                trainer.round = member.round
        averaged = member.average()
        if member.id == member.members[0]:
            states = list(member.models().values())
            member.result(
                **evaluate_population(trainer.model, states, averaged, data, torch.device("cpu"))
            )


def summary(max_delay: str, slowed: bool, seed: int) -> dict[str, Any]:
    """The run's summary.json, made now unless it was before."""
    folder = RUNS / f"{max_delay}-{'slowed' if slowed else 'equal'}-{seed}"
    path = folder / "summary.json"
    if not path.exists():
        flags = ["--data=fashion-mnist", "--train-limit=6000", "--p=0.01", "--epochs=12"]
        with coordinator(
            f"--n={N}", *flags, f"--seed={seed}", f"--max-delay={max_delay}", folder=folder
        ) as address:
            in_processes(N, work, address, slowed)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def speed(row: dict[str, Any]) -> float:
    """Rounds a second of one member's row in a summary."""
    return float(row["steps"] / row["seconds"])


def main() -> None:
    """Run what is missing and record the table."""
    rows = []
    for setting, (max_delay, slowed) in SETTINGS.items():
        found = [summary(max_delay, slowed, seed) for seed in SEEDS]
        by_speed = [sorted(s["bytes"], key=speed, reverse=True) for s in found]
        for who, place in (("fastest", 0), ("slowest", N - 1)):
            members = [ranked[place] for ranked in by_speed]
            averaged = [s["accuracy"]["averaged"] for s in found]
            ensemble = [s["accuracy"]["ensemble"] for s in found]
            rows.append(
                [
                    setting,
                    who,
                    f"{mean(map(speed, members)):.1f}",
                    f"{mean(m['steps'] for m in members):.0f}",
                    f"{mean(m['applied_values'] for m in members):,.0f}",
                    f"{mean(m['expired_values'] for m in members):,.0f}",
                    spread(ensemble) if not place else "",
                    spread(averaged) if not place else "",
                ]
            )
    record(
        "unequal",
        "Members of unequal speed",
        [
            *("setting", "member", "rounds a second", "steps"),
            *("values applied", "expired", "Ensemble", "Averaged"),
        ],
        rows,
        f"Fashion-MNIST, 6,000 images, N = {N}, p = 0.01, 12 epochs; means over {len(SEEDS)} seeds "
        "(± standard deviation), accuracies in per cent. Under none a laggard jumps to its peers' "
        "round when it is 64 behind, so that it takes fewer steps and all end together.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="tens of minutes"))
