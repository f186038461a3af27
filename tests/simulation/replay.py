"""What the reference makes of a simulated run's logs: the values that its members must have."""

from __future__ import annotations

from copy import deepcopy

from washp2p.protocol.roster import roster_at, round_seed, run_key
from washp2p.runfolder.runlog import Joined, Jump
from washp2p.testing.tasks import spoil
from workers.simulation import reference
from workers.simulation.reference import Reference
from workers.simulation.script import end_where_needed, from_records


def replayed(run):
    """The models of all members, by member id, each trained to the end of its script.

    After a power loss they begin with the checkpoints from which the run has gone on.
    """
    rosters, config, task = run.coordinator.rosters, run.config, run.world.task
    resumed = _resumed(run)
    begun = max((start.round for start in resumed.values()), default=0)
    there = (roster.members for roster in rosters if roster.first > begun)
    members = sorted({member for those in there for member in those})
    scripts = {
        member: from_records(_records_after(run.records(member), resumed.get(member)))
        for member in members
    }
    end_where_needed(scripts, run.over)
    made = {member: task.make(member) for member in members}
    first = roster_at(rosters, 1).members[0]
    for member, start in resumed.items():
        made[member][0].load_state_dict(start.model)
        made[member][1].load_state_dict(start.optimizer)
    if config.training.init == "same" and not resumed:
        for model, _ in made.values():
            model.load_state_dict(made[first][0].state_dict())
    numbers = {member: number for number, member in enumerate(members)}
    oracle = Reference(
        [made[member][0] for member in members],
        [made[member][1] for member in members],
        method=config.method.name,
        schedule=config.method.schedule,
        p=config.method.p,
        group=config.method.group,
        block=config.method.block,
        late="overwrite" if config.exchange.max_delay == "0" else config.exchange.late,
        alpha=config.method.alpha,
        due=reference.due(config, run.world.rounds),
    )
    key = run_key(config.seed)
    steps = {member: resumed[member].step if member in resumed else 0 for member in members}
    guests = {}
    for member, script in scripts.items():
        if script.joined is not None:
            guests.setdefault((script.joined.donor, script.joined.step), []).append(member)
    waiting = {guest for those in guests.values() for guest in those}

    def give(donor):
        for guest in guests.pop((donor, steps[donor]), []):
            waiting.remove(guest)
            model, optimizer = made[donor]
            made[guest][0].load_state_dict(model.state_dict())
            made[guest][1].load_state_dict(deepcopy(optimizer.state_dict()))
            oracle.give(numbers[donor], numbers[guest])

    def train(member):
        script, own = scripts[member], numbers[member]
        while member in waiting:
            yield
        number = script.joined.round if script.joined is not None else begun
        last = script.last_step
        while steps[member] < last if last is not None else number < run.world.rounds:
            steps[member] += 1
            task.step(*made[member], member, steps[member])
            if 0 < run.members[member].diverged_after <= steps[member]:
                spoil(made[member][0])
            number = script.jumps.get(steps[member], number + 1)
            roster = [numbers[m] for m in roster_at(rosters, number).members]
            oracle.gather(own, number, round_seed(key, number), roster)
            for of, senders, leg in script.applies.get(steps[member], []):
                among = None if senders is None else [numbers[m] for m in senders]
                while not oracle.ready(of, among, leg):
                    yield
                oracle.apply(own, of, among, leg)
            give(member)
            yield

    for member in members:
        give(member)
    running = {member: train(member) for member in members}
    idle = 0
    while running:
        before = dict(steps)
        for member, training in list(running.items()):
            if next(training, "ended") == "ended":
                del running[member]
        idle = idle + 1 if steps == before and running else 0
        assert idle < 1000, "the logs do not fit each other"
    return {member: model for member, (model, _) in made.items()}


def _resumed(run):
    """The checkpoint of each member with which the run went on after the last power loss.

    Empty if there was none, or if all members went on: then their logs explain the whole run.
    """
    found = {}
    if run.faults.power_lost_before is not None:
        for number, process in run.processes.items():
            if number >= run.faults.power_lost_before and process.resumed is not None:
                found.setdefault(process.member, process.resumed)
    begun = max((start.round for start in found.values()), default=0)
    before = {m for r in run.coordinator.rosters if r.first <= begun for m in r.members}
    return found if before - found.keys() else {}


def _records_after(records, start):
    """What a log says of the rounds after the checkpoint `start`, if that is not None."""
    if start is None:
        return records
    later = [r for r in records if not isinstance(r, Joined) and r.round > start.round]
    return [Jump(start.step, 0, start.round), *later]
