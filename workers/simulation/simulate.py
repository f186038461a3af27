"""A whole population in one process and one thread, without sockets: the oracle.

Members take their steps in turn. After each step the reference exchanges their values: at once,
exactly `--max-delay` steps late, or as the logs of a distributed run say. In lockstep and in a
replay, a distributed run with the same configuration, machine and versions ends with the same bits.
"""

from __future__ import annotations

import time
from collections import Counter
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from washp2p.config.sections import METHODS
from washp2p.errors import UsageError
from washp2p.evaluation.repair import moments, restore_mean
from washp2p.model.device_copies import as_bytes
from washp2p.protocol.messages.frames import MOMENTS
from washp2p.protocol.roster import Peer, Roster, roster_at, round_seed, run_key
from washp2p.protocol.surveys import consensus_line
from washp2p.protocol.version import installed
from washp2p.runfolder import rundir
from workers.simulation import reference
from workers.simulation.planned import PlannedRounds
from workers.simulation.reference import Reference, plain_average
from workers.simulation.script import Script, exactly_late, from_logs
from workers.simulation.summary import summary_of
from workers.training.evaluate import evaluate_population
from workers.training.model_files import load_model, save_model
from workers.training.trainer import Epoch, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.config.config import RunConfig
    from washp2p.protocol.roster import MemberId
    from workers.training.data import Data


def simulate(
    config: RunConfig,
    data: Data,
    folder: Path,
    *,
    on_epoch: Callable[[dict[str, Any]], None],
    replay: Path | None = None,
) -> dict[str, Any]:
    """Train the population on the CPU, fill the run folder, and return its summary.

    Every round is applied exactly `max_delay` steps late (0 under `auto` and `none`), or as the
    logs in the run folder `replay` say. `on_epoch` is called with each epoch's line of
    metrics.jsonl, as a dict. Sets torch to one thread. Raises UsageError if `replay` has no
    complete log.
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
    if replay is not None:
        rosters, scripts, final = from_logs(replay)
        population = SimulatedPopulation(config, data, rosters)
    else:
        final = list(range(config.n))
        population = SimulatedPopulation(config, data, everyone(config))
        delay = int(config.exchange.max_delay) if config.exchange.max_delay.isdecimal() else 0
        script = exactly_late(population.steps_in_all, delay, population.legs)
        scripts = dict.fromkeys(final, script)
    began = time.monotonic()
    with (folder / rundir.METRICS).open("w") as metrics:

        def report(values: dict[str, Any]) -> None:
            metrics.write(rundir.to_json(values) + "\n")
            on_epoch(values)

        for member, trainer in population.trainers.items():
            drawn = trainer.augmentation.to_wire()
            if config.training.augment != "none":
                line = {"member": member, "round": 0, "augmentation": drawn}
                metrics.write(rundir.to_json(line) + "\n")
        measured = population.train(scripts, report)
    for values in measured:
        rundir.append_line(folder / rundir.CONSENSUS, values)
    seconds = time.monotonic() - began
    states = []
    for member in final:
        trainer = population.trainers[member]
        state = trainer.final_state() or trainer.model.state_dict()
        states.append({name: value.clone() for name, value in state.items()})
        about: dict[str, Any] = {"member": member, "round": trainer.round}
        save_model(rundir.member_file(folder, member), states[-1], run=folder.name, **about)
    averaged = plain_average(states)
    save_model(folder / rundir.AVERAGED, averaged, run=folder.name, over=final)
    steps = {member: population.steps[member] for member in population.members}
    trainer = population.trainers[final[0]]
    summary = summary_of(config, trainer, steps, population.reference.sent, seconds)
    summary["averaged_over"] = final
    found = evaluate_population(
        population.trainers[final[0]].model, states, averaged, data, torch.device("cpu")
    )
    summary["accuracy"] = {"over": final, **found}
    rundir.write_json(folder / rundir.SUMMARY, summary)
    return summary


def everyone(config: RunConfig) -> list[Roster]:
    """The rosters of a run that no member joins or leaves: a list of one roster."""
    peers = tuple(Peer(member=member, endpoint="", host="") for member in range(config.n))
    return [Roster(generation=0, peers=peers)]


class SimulatedPopulation:
    """All members that a run ever had, and the reference that exchanges their values.

    If `init` is "same", all begin with the model of the first member of the first roster; otherwise
    each begins with its own. Members that joined late take over a donor's state.
    """

    def __init__(self, config: RunConfig, data: Data, rosters: Sequence[Roster]) -> None:
        cpu = torch.device("cpu")
        self._rosters = rosters
        self.members = sorted({member for roster in rosters for member in roster.members})
        self.trainers = {member: Trainer(config, data, member, cpu) for member in self.members}
        first = self.trainers[roster_at(rosters, 1).members[0]]
        self.steps_in_all = first.steps
        for trainer in self.trainers.values():
            if config.training.init == "same":
                trainer.model.load_state_dict(first.model.state_dict())
        planned = None
        if config.method.name not in METHODS:
            planned = PlannedRounds(config, first.model, first.optimizer, self.steps_in_all)
        self._due = planned.due if planned else reference.due(config, self.steps_in_all)
        numbered = {member: number for number, member in enumerate(self.members)}
        self._number_of = numbered
        self.reference = Reference(
            [trainer.model for trainer in self.trainers.values()],
            [trainer.optimizer for trainer in self.trainers.values()],
            method=config.method.name,
            schedule=config.method.schedule,
            p=config.method.p,
            group=config.method.group,
            block=config.method.block,
            late="overwrite" if config.exchange.max_delay == "0" else config.exchange.late,
            last=config.method.last,
            alpha=config.method.alpha,
            due=self._due,
            planned=planned,
        )
        self._key = run_key(config.seed)
        self.legs = [*self.reference.legs, *([MOMENTS] if config.method.repair else [])]
        """The legs of a round, in the order in which they are applied."""
        self._moments: dict[tuple[int, int], torch.Tensor] = {}
        self._track = config.operation.track_consensus
        self._seen: dict[int, dict[int, torch.Tensor]] = {}
        self._measured: list[dict[str, Any]] = []
        self.steps = dict.fromkeys(self.members, 0)
        self._guests: dict[tuple[MemberId, int], list[MemberId]] = {}
        self._waiting: set[MemberId] = set()

    def train(
        self, scripts: dict[MemberId, Script], on_epoch: Callable[[dict[str, Any]], None]
    ) -> list[dict[str, Any]]:
        """Train all members to the end, by their scripts. Returns what surveys found.

        Raises UsageError if the scripts do not fit each other.
        """
        every = scripts.values()
        uses = Counter(r for s in every for done in s.applies.values() for r, _, _ in done)
        runs = {}
        for member, script in scripts.items():
            runs[member] = self._member(member, script, on_epoch)
            if script.joined is not None:
                self._waiting.add(member)
                donation = (script.joined.donor, script.joined.step)
                self._guests.setdefault(donation, []).append(member)
        for member in scripts:
            self._give(member)
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
            slowest = min((self.trainers[member].round for member in runs), default=0)
            self.reference.forget([n for n, left in uses.items() if left <= 0 and n < slowest])
            self._moments = {key: kept for key, kept in self._moments.items() if key[0] >= slowest}
            self._seen = {key: kept for key, kept in self._seen.items() if key >= slowest}
        return self._measured

    def _member(
        self, member: int, script: Script, on_epoch: Callable[[dict[str, Any]], None]
    ) -> Iterator[list[int] | None]:
        """Train one member, step by step, as its script says.

        Yields [number] after applying a leg of round `number`, [] after a step, and None while the
        member must wait.
        """
        trainer = self.trainers[member]
        while member in self._waiting:
            yield None
        if script.joined is not None:
            trainer.round = script.joined.round
        training = trainer.train()
        while script.last_step is None or self.steps[member] < script.last_step:
            with trainer.streams.active():
                event = next(training, False)
            if event is False:
                return
            if isinstance(event, Epoch):
                on_epoch({"member": member, "round": trainer.round, **event.to_metrics()})
                continue
            self.steps[member] += 1
            trainer.round = script.jumps.get(self.steps[member], trainer.round)
            own = self._number_of[member]
            roster = [self._number_of[m] for m in roster_at(self._rosters, trainer.round).members]
            seed = round_seed(self._key, trainer.round)
            if MOMENTS in self.legs and self._due(trainer.round) and len(roster) > 1:
                with trainer.streams.active():
                    counted = moments(trainer.model, trainer.repair_inputs())
                self._moments[trainer.round, own] = counted
            self.reference.gather(own, trainer.round, seed, roster)
            applies = script.applies.get(self.steps[member], [])
            for number, senders, leg in applies:
                numbers = None if senders is None else [self._number_of[m] for m in senders]
                while not self.reference.ready(number, numbers, leg):
                    yield None
                if leg == MOMENTS:
                    self._repair(trainer, own, number, numbers)
                else:
                    self.reference.apply(own, number, numbers, leg)
                yield [number]
            self._give(member)
            self._survey(member, roster)
            yield []

    def _repair(
        self, trainer: Trainer, own: int, number: int, senders: Sequence[int] | None
    ) -> None:
        """Apply REPAIR: restore the moments that the averaged models had before their mean.

        `number` is the round of the mean. The model gets the mean of these models' moments. If no
        sender's values came, nothing happens.
        """
        among = self.reference.among(own, number)
        came = [m for m in among if m != own and (senders is None or m in senders)]
        if came:
            counted = [self._moments[number, m] for m in among if m in came or m == own]
            with trainer.streams.active():
                restore_mean(trainer.model, counted, trainer.repair_inputs)

    def _survey(self, member: MemberId, roster: list[int]) -> None:
        """Record a member's values if its round has a survey. Once all members have, measure.

        Results are by quarter of the parameters: scalar i of d is in quarter 4 i // d.
        """
        number = self.trainers[member].round
        if not self._track or number % self._track or len(roster) < 2:
            return
        parameters = self.trainers[member].model.parameters()
        flat = torch.cat([p.detach().double().flatten() for p in parameters])
        seen = self._seen.setdefault(number, {})
        seen[self._number_of[member]] = flat
        if seen.keys() == set(roster):
            held = torch.stack([seen[number] for number in roster])
            squares = (held - held.mean(0)).square().mean(0)
            bounds = [-(-len(squares) * quarter // 4) for quarter in range(5)]
            parts = [float(squares[a:b].sum()) for a, b in pairwise(bounds)]
            line = consensus_line(number, len(roster), parts, exact=True)
            self._measured.append(line)
            del self._seen[number]

    def _give(self, donor: MemberId) -> None:
        """Copy the donor's present state to the newcomers that begin with it."""
        for guest in self._guests.pop((donor, self.steps[donor]), []):
            self._waiting.remove(guest)
            here, there = self.trainers[donor], self.trainers[guest]
            there.model.load_state_dict(here.model.state_dict())
            there.optimizer.load_state_dict(deepcopy(here.optimizer.state_dict()))
            self.reference.give(self._number_of[donor], self._number_of[guest])


def differences(folder: Path, run: Path) -> list[str]:
    """The relative paths of model files that differ in any bit between `folder` and `run`."""
    final = rundir.read_summary(run)["averaged_over"]
    files = [rundir.member_file(Path(), member) for member in final]
    return [
        str(file)
        for file in (*files, Path(rundir.AVERAGED))
        if not _equal(load_model(folder / file), load_model(run / file))
    ]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and as_bytes(value.reshape(-1)) == as_bytes(other[name].reshape(-1))
        for name, value in one.items()
    )
