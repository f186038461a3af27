"""What must be true of every simulated run, whatever happened in it."""

from __future__ import annotations

import torch

from tests.simulation.replay import replayed
from washp2p.protocol.ledger import Kind
from washp2p.protocol.roster import roster_at
from washp2p.runfolder.runlog import Record
from workers.simulation.reference import plain_average


def check(run):
    """Raise AssertionError if a promise was not kept."""
    alive = [process for process in run.members.values() if process.averaged is not None]
    assert alive, "nobody has the average"
    assert run.coordinator.end is not None, "the coordinator waits"
    assert not run.coordinator.end.code, run.coordinator.end
    assert not run.coordinator.refused, run.coordinator.refused
    over = run.over
    assert {process.member for process in alive} <= set(over)
    for member in over:
        process = run.members[member]
        assert process.averaged is not None or process.killed, f"member {member}: {process.error!r}"
    _rosters_agree(run)
    models = replayed(run)
    states = []
    for member in over:
        process = run.members[member]
        _equal(process.model.state_dict(), models[member].state_dict(), f"member {member}")
        states.append(models[member].state_dict())
        sent = process.core.parts.ledger.total(Kind.EXCHANGE)
        assert sent.payload == sent.expected
        assert process.log.whole
        assert not process.core.parts.refusals.refused, process.core.parts.refusals.refused
    average = plain_average(states)
    for process in alive:
        _equal(process.averaged, average, f"the average of member {process.member}")


def _rosters_agree(run):
    """In every round every member was in the roster that the coordinator has for it."""
    rosters = run.coordinator.rosters
    for member, process in run.members.items():
        for record in process.log.records:
            if isinstance(record, Record):
                roster = roster_at(rosters, record.round)
                assert member in roster.members
                assert {*record.applied, *record.lost} <= set(roster.members) - {member}


def _equal(mine, theirs, what):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), f"{what}: {name} differs from the replay"
