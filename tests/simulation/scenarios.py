"""Draws a run, and what befalls it, from one number."""

from __future__ import annotations

from random import Random

from washp2p.testing import SimulatedRun, ToyTask
from washp2p.testing.population import STEP_SECONDS

METHODS = [
    {"method": "wash", "p": 0.2},
    {"method": "wash", "p": 0.05, "late": "difference"},
    {"method": "wash-opt", "p": 0.1},
    {"method": "sparta", "p": 0.1},
    {"method": "papa", "alpha": 0.9, "every": 3},
]
BEGUN = 1.0
"""Virtual seconds after which the population is complete: before, it waits for who is killed."""
DELAYS = ["0", "0", "1", "3", "auto", "none"]


def drawn(seed):
    """The run of scenario `seed`, not begun."""
    random = Random(seed)
    n = random.choice([2, 2, 3, 3, 4, 5])
    rounds = random.randint(30, 60)
    options = dict(random.choice(METHODS))
    means = options["method"] in {"sparta", "papa"}
    options["max_delay"] = "0" if means else random.choice(DELAYS)
    if options["method"] == "wash" and n > 3 and random.random() < 0.3:
        options["group"] = 2
    task = ToyTask(optimizer=random.choice(["sgd", "adamw"]))
    run = SimulatedRun(seed=seed, n=n, rounds=rounds, task=task, patience=2.0, **options)
    victims = random.sample(range(n), random.randint(0, n - 1))
    for victim in victims:
        run.kill(victim, at=BEGUN + random.uniform(0, 1.5 * rounds * STEP_SECONDS))
    return run
