"""What must be true of every simulated run, whatever happened in it."""

from __future__ import annotations

import torch

from coordinator.machine.publication import AHEAD, SHARE, SMALLEST
from tests.simulation.replay import replayed
from washp2p.errors import DroppedError, JoinRefusedError, RunStoppedError, UnreachableError
from washp2p.member.derivation import Derivation
from washp2p.protocol.ledger import Kind, Loss
from washp2p.protocol.messages.frames import BESIDE, FIRST
from washp2p.protocol.refusals import Reason
from washp2p.protocol.roster import Order, roster_at, round_seed, run_key
from washp2p.runfolder.runlog import Record
from workers.simulation.reference import plain_average
from workers.simulation.script import from_records

STALLED = 14
"""Times the patience that a member waits for a slow one: 12 until it reports it, and what follows.
"""

BROKEN = 3
"""The same for two members whose link is cut: one in a round, one in the average, and what follows.
"""

AWAY = 62
"""The same of a member that has lost its coordinator: 60, and what follows."""

STEPS = 10
"""Steps between two exchanges, at most."""

FEW_ROUNDS = 15
"""In so many rounds everybody gets values of everybody else; in twice as many in groups of two."""


def check(run):
    """Raise AssertionError if a promise was not kept."""
    alive = [process for _, process in _in_rosters(run) if process.averaged is not None]
    assert alive, "nobody has the average"
    assert run.coordinator.end is not None, "the coordinator waits"
    assert not run.coordinator.end.code, run.coordinator.end
    assert not run.coordinator.refused, run.coordinator.refused
    over = run.over
    assert {process.member for process in alive} <= set(over)
    for member in over:
        process = run.members[member]
        left_alone = process.number not in run.faults.disturbed
        assert process.averaged is not None or not left_alone, f"member {member}: {process.error!r}"
    _what_is_kept_is_there(run)
    _rosters_agree(run)
    _who_was_left_alone_ends_well(run)
    _nobody_waits_too_long(run)
    _nothing_is_too_late(run)
    _who_diverges_is_dropped(run)
    for process in alive:
        _values_are_accounted_for(run, process)
    _values_are_those_of_the_replay(run)
    states = []
    for member in over:
        process = run.members[member]
        states.append(process.model.state_dict())
        sent = process.core.parts.ledger.total(Kind.EXCHANGE)
        assert sent.payload == sent.expected
        ended_early = process.killed_while or process.error is not None
        assert process.log.whole or process.averaged is None or ended_early
        assert process.averaged is None or run.coordinator.evaluated
        refused = process.core.parts.refusals.refused
        assert set(refused) <= {Reason.ASTRAY}, refused  # for one whose address another has now
    average = plain_average(states)
    for process in alive:
        _equal(process.averaged, average, f"the average of member {process.member}")


def _values_are_those_of_the_replay(run):
    """Bit for bit, unless a log has a gap."""
    if any(process.log.has_gap for process in run.processes.values()):
        return
    models = replayed(run)
    for member in run.over:
        theirs = models[member].state_dict()
        _equal(run.members[member].model.state_dict(), theirs, f"member {member}")


def _what_is_kept_is_there(run):
    """Whoever holds the last complete checkpoint, by the journal, has its file."""
    number, members = run.coordinator.checkpoint
    for member in members:
        held = run.members[member].host.checkpoints
        assert (number, member) in held, f"member {member} has {sorted(held)}, not {number}"


def _in_rosters(run):
    """The members of all rosters, and their processes. A life that was gone back on has none."""
    there = {member for roster in run.coordinator.rosters for member in roster.members}
    return [(member, process) for member, process in run.members.items() if member in there]


def _rosters_agree(run):
    """In every round every member was in the roster that the coordinator has for it."""
    rosters = run.coordinator.rosters
    for member, _ in _in_rosters(run):
        for record in run.records(member):
            if isinstance(record, Record):
                roster = roster_at(rosters, record.round)
                assert member in roster.members
                assert {*record.applied, *record.lost} <= set(roster.members) - {member}


def _who_was_left_alone_ends_well(run):
    """Only workers that something befell end early, and newcomers that are too late."""
    for number, process in run.processes.items():
        if number not in run.faults.disturbed and process.error is not None:
            late = isinstance(process.error, JoinRefusedError | UnreachableError | DroppedError)
            assert late, f"worker {number}: {process.error!r}"
            assert number >= run.founders, f"worker {number}: {process.error!r}"


def _who_diverges_is_dropped(run):
    """Well before the end, if enough are there to say so.

    Without a coordinator, members go on while they have seeds.
    """
    if run.config.exchange.max_delay == "none" or run.config.method.name == "papa-all":
        return  # the others may be at their end before they hear of it
    rounds = run.world.rounds
    few_rounds = FEW_ROUNDS * (2 if run.config.method.group else 1)
    if run.faults.coordinators_lost:
        few_rounds += (AHEAD + 1) * max(SMALLEST, rounds // SHARE)
    for member, process in _in_rosters(run):
        if not process.diverged_after:
            continue
        steps = from_records(run.records(member))
        diverged = (n for n in range(1, rounds) if steps.step_of(n) >= process.diverged_after)
        roster = process.core.parts.connection.state.roster
        seen_from = max(next(diverged, rounds), roster.first)  # votes are of one roster
        if seen_from >= rounds - few_rounds:
            continue
        others = set(roster.members) - {process.member}
        voters = {m for m in others if run.members[m].number not in run.faults.touched}
        unharmed = not process.killed_while and not process.out_of_action
        if 2 * len(voters) > len(others) and unharmed:
            assert not (
                isinstance(process.error, RunStoppedError) and "has diverged" in str(process.error)
            ), f"member {process.member} was not dropped"


def _nobody_waits_too_long(run):
    """A member waits for a slow one until that is reported, and for a coordinator that is away.

    Slow members and cut links may hold it up one after the other. It waits for live ones as long as
    their steps take. A coordinator that has taken over counts anew for how long a member is silent.
    """
    patience = run.config.operation.patience
    faults = run.faults
    held_up = STALLED * max(1, faults.delays) + BROKEN * len(faults.cut_links)
    busy = sum(process.busy_for for process in run.processes.values())
    seldom = run.config.exchange.max_delay == "none" or run.config.method.name == "papa-all"
    steps = 3 * run.step_seconds * (run.world.rounds if seldom else STEPS)
    anew = STALLED * patience * faults.coordinators_lost
    for process in run.members.values():
        excuse = process.out_of_action + faults.without_coordinator + busy + steps + anew
        most = (held_up if process.error is None else max(held_up, AWAY)) * patience + excuse
        assert process.longest_wait <= most, f"member {process.member}: {process.longest_wait} s"


def _nothing_is_too_late(run):
    """Values are applied, or given up, at most S steps after their round."""
    bound = run.config.exchange.max_delay
    if bound.isdigit():
        for member, _ in _in_rosters(run):
            steps = from_records(run.records(member))
            for record in run.records(member):
                if isinstance(record, Record):
                    late = record.step - steps.step_of(record.round)
                    assert 0 <= late <= int(bound), f"member {member}: {record}"


def _values_are_accounted_for(run, process):
    """What the log says is applied and lost is, value by value, what the member has counted."""
    if process.log.has_gap:
        return
    parts, member = process.core.parts, process.member
    derivation = Derivation(parts.strategy, parts.store, member)
    rosters, key = run.coordinator.rosters, run_key(run.config.seed)
    applied = lost = 0
    routes = {}
    for record in run.records(member):
        if isinstance(record, Record) and record.leg < BESIDE:
            number = record.round
            if number not in routes:
                roster = roster_at(rosters, number)
                routes[number] = derivation(Order(number, round_seed(key, number), roster))
            route = routes[number].of if record.leg == FIRST else routes[number].to
            values = {sender: end - begin for sender, begin, end in route}
            applied += sum(values[sender] for sender in record.applied)
            lost += sum(values[sender] for sender in record.lost)
    merger, arrivals = parts.exchange.merger, parts.exchange.arrivals
    assert applied == merger.applied_values + merger.refused_values, f"member {member}"
    if not run.faults.touched and run.config.exchange.max_delay != "none":
        assert not lost, f"member {member}"
    assert lost == arrivals.expired_values - arrivals.lost[Loss.JUMPED], f"member {member}"


def _equal(mine, theirs, what):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), f"{what}: {name} differs from the replay"
