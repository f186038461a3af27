"""Draws a run, and what befalls it, from one number."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from washp2p.config.sections import SELECTIVE
from washp2p.testing import SimulatedRun, ToyTask
from washp2p.testing.population import STEP_SECONDS

METHODS = [
    {"method": "wash", "p": 0.2},
    {"method": "wash", "p": 0.05, "late": "difference"},
    {"method": "wash-opt", "p": 0.1},
    {"method": "sparta", "p": 0.1},
    {"method": "papa", "alpha": 0.9, "every": 3},
    {"method": "papa-all", "every": 10},
]
BEGUN = 1.0
"""Virtual seconds after which the population is complete: before, it waits for who is killed. Where
there is room for newcomers, it begins one patience later.
"""
DELAYS = ["0", "0", "1", "3", "auto", "none"]
PATIENCE = 2.0
FAULTS = [
    "kill",
    "kill in act",
    "stop",
    "cut",
    "cut from coordinator",
    "coordinator",
    "coordinator in act",
    "diverge",
    "disk",
    "all",
    "busy",
    "slow",
    "clock",
]
RARE = ["log disk", "journal disk", "coordinator's clock"]
"""Faults after which less can be demanded of a run. It has at most one of them."""


class Fault(NamedTuple):
    """What befalls a run: `kind` of FAULTS, to a worker and perhaps another, when and how long.

    `act` is the number of a message or a write, for who dies in the middle of something.
    """

    kind: str
    at: float
    seconds: float
    worker: int
    other: int
    both: bool
    act: int

    def befall(self, run):  # noqa: PLR0912 - a case a fault
        """Let it befall `run`, which has not begun."""
        faults, when = run.faults, {"at": self.at, "seconds": self.seconds}
        match self.kind:
            case "kill":
                faults.kill(self.worker, at=self.at)
            case "disk" | "log disk":
                faults.fill_disk(self.worker, **when, logs=self.kind == "log disk")
            case "journal disk":
                faults.fill_journal(**when)
            case "all":
                faults.kill_all(**when, power=self.both)
            case "diverge":
                faults.diverge(self.worker, at=self.at)
            case "kill in act":
                faults.kill_in_act(self.worker, self.act)
            case "coordinator in act":
                faults.kill_coordinator_in_act(self.act, seconds=self.seconds)
            case "stop":
                faults.stop(self.worker, **when)
            case "busy":
                faults.occupy(self.worker, **when)
            case "slow":
                faults.slow_down(self.worker, **when)
            case "clock":
                faults.put_clock_forward(self.worker, **when)
            case "coordinator's clock":
                faults.put_coordinators_clock_forward(**when)
            case "cut":
                faults.cut(self.worker, self.other, **when, both=self.both)
            case "cut from coordinator":
                faults.cut(self.worker, **when, both=self.both)
            case "coordinator":
                faults.kill_coordinator(**when)
            case "join":
                run.join(at=self.at, anywhere=True)


class Scenario(NamedTuple):
    """A run and its faults. `n` members begin it, and as many newcomers find room as come."""

    seed: int
    n: int
    rounds: int
    step_seconds: float
    optimizer: str
    options: dict
    faults: tuple[Fault, ...]

    def run(self):
        """The run, not begun."""
        run = SimulatedRun(
            seed=self.seed,
            n=self.n,
            room=sum(fault.kind == "join" for fault in self.faults),
            rounds=self.rounds,
            step_seconds=self.step_seconds,
            task=ToyTask(optimizer=self.optimizer),
            patience=PATIENCE,
            **self.options,
        )
        for fault in self.faults:
            fault.befall(run)
        return run


def scenario(seed):
    """The scenario of a seed."""
    random = Random(seed)
    n = random.choice([2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8])
    rounds = random.choice([50, 50, 50, 50, 55, 60, 80, 200]) if n < 4 else random.randint(50, 55)
    options = dict(random.choice(METHODS))
    newcomers = random.choice([0, 0, 0, 1, 2])
    means = options["method"] in {"sparta", "papa", "papa-all"}
    options["max_delay"] = "0" if means else random.choice(DELAYS)
    if options["method"] == "wash" and n > 3 and random.random() < 0.3:
        options["group"] = 2
    if options["method"] in SELECTIVE:
        options["block"] = Random(f"block {seed}").choice(["1", "1", "3", "row"])
    step_seconds = random.choice([STEP_SECONDS] * 9 + [10 * STEP_SECONDS])
    begun = BEGUN + (PATIENCE if newcomers else 0.0)
    options["track_consensus"] = random.choice([0, 0, 5, 8])
    options["checkpoint_minutes"] = random.choice([0, 0.5 / 60, 1 / 60])
    faults = []
    spared = random.randrange(n)  # somebody must be left
    kinds = random.choices(FAULTS, k=random.choice([0, 1, 1, 2, 2, 3, 4, 5, 6]))
    if random.random() < 0.1:
        kinds.append(random.choice(RARE))
    if "journal disk" in kinds:  # a coordinator that died meanwhile could not be replaced
        kinds = [k for k in kinds if not k.startswith("coordinator") and k != "all"]
    for kind in kinds:
        worker = random.choice([w for w in range(n) if w != spared])
        other = random.choice([w for w in range(n) if w != worker])
        at = begun + random.uniform(0, 1.5 * rounds * step_seconds)
        seconds = random.choice([0.1, 0.5, 1.0, 2.0, 5.0, 30.0]) * random.uniform(0.5, 1.5)
        if kind in {"busy", "slow"}:  # until it is reported once, or twice
            seconds = max(seconds, random.choice([0.0, 15.0 * PATIENCE, 40.0 * PATIENCE]))
        both = random.random() < 0.7
        act = random.randint(20 * n, rounds * n)
        faults.append(Fault(kind, at, seconds, worker, other, both, act))
        if kind == "diverge" and n > 3 and other != spared:  # while the others say so
            soon = at + random.uniform(0, 4 * step_seconds)
            faults.append(Fault("kill", soon, 0.0, other, worker, both, act))
        if kind == "busy" and "journal disk" not in kinds and random.random() < 0.5:
            soon = at + random.uniform(0, 2 * PATIENCE)
            faults.append(Fault("coordinator", soon, 1.0, worker, other, both, act))
    for _ in range(newcomers):
        at = begun + random.uniform(0, rounds * step_seconds)
        faults.append(Fault("join", at, 0.0, 0, 0, both=False, act=0))
    optimizer = random.choice(["sgd", "adamw"])
    return Scenario(seed, n, rounds, step_seconds, optimizer, options, tuple(faults))
