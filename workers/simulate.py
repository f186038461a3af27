"""A whole population in one process, one thread, no sockets: the reference for everything else.

Members take their steps in turn, then `washp2p.reference` shuffles them: at once, every round
exactly S late, or as the logs of a distributed run say. In lockstep, and in a replay, a distributed
run with the same configuration ends with the same bits, on the same machine and versions.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from washp2p import rundir
from washp2p.errors import UsageError
from washp2p.rates import papa_all_reduce, papa_payload
from washp2p.reference import Reference, plain_average
from washp2p.rounds import round_seed, run_key
from washp2p.runlog import Jump, read_log
from washp2p.store import Store
from washp2p.strategies import strategy_for
from washp2p.version import installed
from workers.checkpoint import save_model
from workers.evaluate import evaluate_population
from workers.trainer import Epoch, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.config import RunConfig
    from workers.data import Data

Application = tuple[int, tuple[int, ...] | None]
"""A round, and whose values of it are applied: None for everyone's."""


@dataclass
class Script:
    """What one member does after each of its own steps, counted from 1.

    `applies` tells what it applies after which step, in order; `jumps` to which round a step
    belongs where that is not the one after the last.
    """

    applies: dict[int, list[Application]] = field(default_factory=dict)
    jumps: dict[int, int] = field(default_factory=dict)


def exactly_late(rounds: int, delay: int) -> Script:
    """Every round is applied by all members `delay` steps after it; the last ones at the end."""
    script = Script()
    for number in range(1, rounds + 1):
        script.applies.setdefault(min(number + delay, rounds), []).append((number, None))
    return script


def from_log(path: Path) -> Script:
    """What a member of a distributed run did."""
    script = Script()
    for record in read_log(path):
        if isinstance(record, Jump):
            script.jumps[record.step] = record.round
        elif record.applied:
            script.applies.setdefault(record.step, []).append((record.round, record.applied))
    return script


def simulate(
    config: RunConfig,
    data: Data,
    folder: Path,
    *,
    on_epoch: Callable[[dict[str, Any]], None],
    replay: Path | None = None,
) -> dict[str, Any]:
    """Train the population on the CPU, fill the run folder, return its summary.

    Every round is applied exactly `max_delay` late (`auto` and `none` are 0 where there is no
    network), or as the run in the folder `replay` did. `on_epoch` gets each line of metrics.jsonl.
    Sets torch to one thread. Raises UsageError if `replay` has no complete log.
    """
    torch.set_num_threads(1)
    rundir.write_json(
        folder / rundir.CONFIG,
        {
            "run": folder.name,
            "simulated": True,
            "config": config.to_wire(),
            "versions": installed(),
        },
    )
    population = Population(config, data)
    if replay is not None:
        scripts = [_script(replay, member) for member in range(config.n)]
    else:
        delay = int(config.max_delay) if config.max_delay.isdecimal() else 0
        scripts = [exactly_late(population.trainers[0].steps, delay)] * config.n
    began = time.monotonic()
    with (folder / rundir.METRICS).open("w") as metrics:

        def report(values: dict[str, Any]) -> None:
            metrics.write(json.dumps(values) + "\n")
            on_epoch(values)

        population.train(scripts, report)
    seconds = time.monotonic() - began
    states = [
        {name: value.clone() for name, value in trainer.model.state_dict().items()}
        for trainer in population.trainers
    ]
    for member, state in enumerate(states):
        save_model(rundir.member_file(folder, member), state)
    averaged = plain_average(states)
    save_model(folder / rundir.AVERAGED, averaged)
    summary = _summary(config, population, seconds)
    summary["accuracy"] = evaluate_population(
        population.trainers[0].model, states, averaged, data, torch.device("cpu")
    )
    rundir.write_json(folder / rundir.SUMMARY, summary)
    return summary


class Population:
    """All members of a run, and the reference that shuffles them."""

    def __init__(self, config: RunConfig, data: Data) -> None:
        cpu = torch.device("cpu")
        self.trainers = [Trainer(config, data, member, cpu) for member in range(config.n)]
        for trainer in self.trainers[1:]:
            trainer.model.load_state_dict(self.trainers[0].model.state_dict())
        self.reference = Reference(
            [trainer.model for trainer in self.trainers],
            [trainer.optimizer for trainer in self.trainers],
            method=config.method,
            schedule=config.schedule,
            p=config.p,
            group=config.group,
            late="overwrite" if config.max_delay == "0" else config.late,
        )
        self._key = run_key(config.seed)
        self.steps = [0] * config.n

    def train(self, scripts: Sequence[Script], on_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Train everyone to the end, each by its script. Raises UsageError if they do not fit."""
        uses = Counter(r for s in scripts for done in s.applies.values() for r, _ in done)
        runs = {
            member: self._member(member, script, on_epoch) for member, script in enumerate(scripts)
        }
        while runs:
            moved = False
            for member, run in list(runs.items()):
                done = next(run, ())
                if done is None:
                    continue
                moved = True
                uses.subtract(done)
                if done == ():
                    del runs[member]
            if not moved:
                raise UsageError("the run's logs do not fit each other; is one cut short?")
            slowest = min(trainer.round for trainer in self.trainers)
            self.reference.forget([n for n, left in uses.items() if left <= 0 and n < slowest])

    def _member(
        self, member: int, script: Script, on_epoch: Callable[[dict[str, Any]], None]
    ) -> Iterator[list[int] | None]:
        """Train one member: yields the rounds applied after each step, None while it must wait."""
        trainer = self.trainers[member]
        training = trainer.train()
        while True:
            with trainer.streams.active():
                event = next(training, False)
            if event is False:
                return
            if isinstance(event, Epoch):
                on_epoch({"member": member, "round": trainer.round, **event.to_metrics()})
                continue
            self.steps[member] += 1
            trainer.round = script.jumps.get(self.steps[member], trainer.round)
            self.reference.gather(member, trainer.round, round_seed(self._key, trainer.round))
            applies = script.applies.get(self.steps[member], [])
            for number, senders in applies:
                while not self.reference.ready(number, senders):
                    yield None
                self.reference.apply(member, number, senders)
            yield [number for number, _ in applies]


def _script(run: Path, member: int) -> Script:
    path = rundir.log_file(run, member)
    try:
        return from_log(path)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; --replay needs the logs of all members in one "
            "run folder"
        ) from None


def differences(folder: Path, run: Path, members: int) -> list[str]:
    """Which models of two run folders are not equal bit for bit."""
    files = [rundir.member_file(Path(), member) for member in range(members)]
    return [
        str(file)
        for file in (*files, Path(rundir.AVERAGED))
        if (folder / file).read_bytes() != (run / file).read_bytes()
    ]


def _summary(config: RunConfig, population: Population, seconds: float) -> dict[str, Any]:
    trainer = population.trainers[0]
    rounds = trainer.steps
    strategy = strategy_for(config)
    layout = Store(trainer.model, trainer.optimizer, strategy.slots(trainer.optimizer)).layout
    rows = []
    for member, sent in enumerate(population.reference.sent):
        links = [
            {
                "peer": peer,
                "kind": "exchange",
                "payload": scalars * layout.scalar_bytes,
                "header": 0,
                "messages": 0,
                "expected": scalars * layout.scalar_bytes,
            }
            for peer, scalars in enumerate(sent)
            if peer != member
        ]
        payload = sum(sent) * layout.scalar_bytes
        rows.append(
            {
                "member": member,
                "host": "simulated",
                "steps": population.steps[member],
                "seconds": round(seconds, 3),
                "waited": 0.0,
                "max_delay": config.max_delay if config.max_delay.isdecimal() else "0",
                "applied_values": sum(row[member] for row in population.reference.sent),
                "expired_values": 0,
                "payload": payload,
                "header": 0,
                "messages": 0,
                "expected_payload": payload,
                "theory": strategy.expected_payload(layout, config.n) * rounds,
                "paper": strategy.paper_payload(layout) * rounds,
                "papa": papa_payload(layout) * rounds,
                "papa_all_reduce": papa_all_reduce(layout, config.n) * rounds,
                "control": 0,
                "seeds_received": 0,
                "links": links,
            }
        )
    return {
        "method": config.method,
        "n": config.n,
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(rounds / seconds, 2),
        "parameters": layout.values,
        "averaged_over": list(range(config.n)),
        "bytes": rows,
        "lost_values": 0,
    }
