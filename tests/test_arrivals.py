"""Why values are lost: each way in which they can be, once."""

from __future__ import annotations

import pytest

from tests.conftest import Refusals
from washp2p import arrivals as module
from washp2p.arrivals import Arrivals, Loss
from washp2p.frames import End, Frame

RUN = b"12345678"
PEER, OTHER = 1, 2


def frame(number, sender=PEER, *, fingerprint=7, epoch=0):
    return Frame(RUN, sender, epoch, number, 1, 0, fingerprint)


def values(count):
    return memoryview(bytes(4 * count))


@pytest.fixture
def arrivals():
    """Round 1 is out: ten values are to come of one peer, five of another."""
    made = Arrivals([4], Refusals())
    made.expect(1, 0, 7, {PEER: (0, 10), OTHER: (10, 15)})
    return made


def test_nothing_is_lost_that_comes(arrivals):
    arrivals.accept(frame(1), values(10))
    arrivals.accept(frame(1, OTHER), values(5))
    assert arrivals.lost_by_reason == {}
    assert arrivals.expired_values == 0


def test_of_who_was_dropped(arrivals):
    arrivals.remove(PEER)
    arrivals.expect(2, 0, 7, {PEER: (0, 4)})
    assert arrivals.lost_by_reason == {"sender dropped": 14}


def test_behind_a_broken_link(arrivals):
    arrivals.silence(PEER)
    arrivals.expect(2, 0, 7, {PEER: (0, 4)})
    assert arrivals.lost_by_reason == {"link broken": 14}


def test_on_the_way_when_a_link_broke(arrivals):
    arrivals.posted(OTHER, 1)
    assert arrivals.lost_by_reason == {"link broken": 5}


def test_too_late(arrivals):
    arrivals.expect(2, 0, 7, {PEER: (0, 4)})
    arrivals.give_up(2)
    assert arrivals.lost_by_reason == {"too late": 15}


def test_of_a_round_that_its_sender_jumped_over(arrivals):
    arrivals.expect(2, 0, 7, {PEER: (0, 4)})
    arrivals.accept(frame(2), values(4))
    assert arrivals.lost_by_reason == {"sender skipped the round": 10}
    arrivals.ended(End(RUN, OTHER, 0, 2))
    assert arrivals.lost_by_reason == {"sender skipped the round": 15}


def test_of_a_round_that_this_member_jumped_over(arrivals):
    arrivals.accept(frame(2), values(3))  # early
    arrivals.expect(4, 0, 7, {})
    arrivals.accept(frame(3, OTHER), values(2))  # late
    assert arrivals.lost[Loss.JUMPED] == 5


def test_of_what_was_refused(arrivals):
    arrivals.accept(frame(1, fingerprint=8), values(10))
    assert arrivals.lost_by_reason == {"refused": 10}


def test_too_early(arrivals, monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 16)
    arrivals.accept(frame(1), values(10))
    arrivals.accept(frame(3), values(5))
    arrivals.expect(2, 0, 7, {})
    arrivals.expect(3, 0, 7, {PEER: (0, 5)})  # counted when it was dropped, and not again
    assert arrivals.lost_by_reason == {"too early": 5}
