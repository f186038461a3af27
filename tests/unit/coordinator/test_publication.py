"""Which rounds are to be kept, and that members hear of it before the round's seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.machine.publication import Publication
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.from_coordinator import Checkpoint, Seeds
from washp2p.protocol.roster import Peer, Roster

ROSTER = Roster(generation=0, peers=(Peer(member=0, endpoint="", host=""),))


def publish(config, rounds, seconds_a_round=0.01):
    """What members are told in a whole run, each doing a round in so many seconds."""
    publication = Publication(config, rounds)
    publication.begin(0.0)
    told = []
    for done in range(rounds + 1):
        publication.reach(done, done * seconds_a_round)
        while window := publication.due(done * seconds_a_round):
            told += publication.messages([ROSTER], window)
    return publication, told


@given(
    epochs=st.integers(1, 40),
    length=st.integers(1, 30),
    every=st.integers(1, 5),
    pace=st.floats(1e-4, 1.0),
)
def test_every_so_many_epochs(epochs, length, every, pace):
    config = RunConfig.resolve(n=2, epochs=epochs, checkpoint_epochs=every, checkpoint_minutes=0)
    publication, told = publish(config, epochs * length, pace)
    marks = list(range(every * length, epochs * length + 1, every * length))
    assert publication.planned == marks
    named = set()
    reached = 0
    for message in told:
        if isinstance(message, Checkpoint):
            assert reached < message.round
            named.add(message.round)
        else:
            assert isinstance(message, Seeds)
            assert message.first == reached + 1
            reached += len(message.seeds) // 8
    assert named == set(marks)
    assert reached == epochs * length


@pytest.mark.parametrize(("seconds", "marks"), [(0.1, 5), (0.01, 0)])
def test_every_so_many_minutes(seconds, marks):
    config = RunConfig.resolve(n=2, checkpoint_minutes=0.3)
    publication, _ = publish(config, 1000, seconds)
    assert len(publication.planned) == marks
    config = RunConfig.resolve(n=2, checkpoint_minutes=0)
    assert publish(config, 1000, seconds)[0].planned == []
