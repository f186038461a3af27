"""Why values are lost: each way in which they can be, once."""

from __future__ import annotations

import pytest

from tests.support.refusals import RecordedRefusals
from washp2p.protocol.ledger import Loss
from washp2p.protocol.messages.frames import FOREVER, MOMENTS, SECOND, SURVEY, End, Frame
from washp2p.protocol.refusals import Reason
from washp2p.rounds import arrivals as module
from washp2p.rounds.arrivals import Arrivals
from washp2p.rounds.round_state import Leg

RUN = b"12345678"
ME, PEER, OTHER = 0, 1, 2


def frame(number, sender=PEER, *, fingerprint=7, generation=0, leg=0):
    return Frame(RUN, sender, ME, generation, number, 1, 0, fingerprint, leg)


def values(count):
    return memoryview(bytes(4 * count))


@pytest.fixture
def arrivals():
    """Round 1 is out: ten values are to come of one peer, five of another."""
    made = Arrivals([4], RecordedRefusals())
    made.expect(Leg(1, 0, 7, {PEER: (0, 10), OTHER: (10, 15)}))
    return made


def test_nothing_is_lost_that_comes(arrivals):
    arrivals.accept(frame(1), values(10))
    arrivals.accept(frame(1, OTHER), values(5))
    assert arrivals.lost_by_reason == {}
    assert arrivals.expired_values == 0


def test_of_who_was_dropped(arrivals):
    arrivals.remove(PEER)
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 4)}))
    assert arrivals.lost_by_reason == {"sender dropped": 14}


def test_behind_a_broken_link(arrivals):
    arrivals.silence(PEER)
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 4)}))
    assert arrivals.lost_by_reason == {"link broken": 14}


def test_on_the_way_when_a_link_broke(arrivals):
    arrivals.posted(OTHER, (1, 0))
    assert arrivals.lost_by_reason == {"link broken": 5}


def test_too_late(arrivals):
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 4)}))
    arrivals.give_up(2)
    assert arrivals.lost_by_reason == {"too late": 15}


def test_of_a_round_that_its_sender_jumped_over(arrivals):
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 4)}))
    arrivals.accept(frame(2), values(4))
    assert arrivals.lost_by_reason == {"sender skipped the round": 10}
    arrivals.ended(End(RUN, OTHER, ME, 0, 2, 1))
    assert arrivals.lost_by_reason == {"sender skipped the round": 15}


def test_of_a_round_that_this_member_jumped_over(arrivals):
    arrivals.accept(frame(2), values(3))  # early
    arrivals.expect(Leg(4, 0, 7, {}))
    arrivals.accept(frame(3, OTHER), values(2))  # late
    assert arrivals.lost[Loss.JUMPED] == 5


def test_of_what_was_refused(arrivals):
    arrivals.accept(frame(1, fingerprint=8), values(10))
    assert arrivals.lost_by_reason == {"refused": 10}


def test_too_early(arrivals, monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 16)
    arrivals.accept(frame(1), values(10))
    arrivals.accept(frame(3), values(5))
    arrivals.expect(Leg(2, 0, 7, {}))
    arrivals.expect(Leg(3, 0, 7, {PEER: (0, 5)}))  # counted when it was dropped, and not again
    assert arrivals.lost_by_reason == {"too early": 5}


def test_a_link_that_broke_between_legs_loses_those_before_it_and_no_others(arrivals):
    arrivals.accept(frame(1), values(10))
    arrivals.accept(frame(1, OTHER), values(5))
    arrivals.posted(PEER, (1, 0))
    arrivals.expect(Leg(1, 0, 7, {PEER: (0, 6)}, SECOND))
    arrivals.accept(frame(1, leg=SECOND), values(6))
    assert arrivals.complete(1)
    assert arrivals.lost_by_reason == {}
    arrivals.posted(PEER, (1, MOMENTS))
    arrivals.expect(Leg(1, 0, 7, {PEER: (0, 2)}, MOMENTS))
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 2)}))
    assert arrivals.waits_for(1) == set()
    assert arrivals.waits_for(2) == {PEER}


def test_what_goes_beside_a_round_is_not_counted_as_lost(arrivals):
    arrivals.expect(Leg(1, 0, 7, {PEER: (0, 9)}, SURVEY))
    arrivals.silence(PEER)
    assert arrivals.lost_by_reason == {"link broken": 10}
    assert arrivals.newest == 0
    arrivals.accept(frame(40, OTHER, leg=SURVEY), values(9))
    assert arrivals.newest == 0


def test_an_exchange_far_ahead_is_held_if_there_is_room(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 16)
    arrivals = Arrivals([4], RecordedRefusals(), room=40)
    arrivals.expect(Leg(10, 0, 7, {}))
    arrivals.accept(frame(20), values(10))
    arrivals.expect(Leg(20, 0, 7, {PEER: (0, 10)}))
    assert arrivals.complete(20)
    assert arrivals.lost_by_reason == {}


def test_legs_that_there_are_not_are_refused_and_not_held():
    refusals = RecordedRefusals()
    arrivals = Arrivals([4], refusals)
    arrivals.expect(Leg(1, 0, 7, {PEER: (0, 1)}))
    arrivals.accept(frame(1), values(1))
    for leg in (SECOND, SURVEY, SURVEY + 1, 2**40):
        arrivals.accept(frame(1, leg=leg), values(1000))
    arrivals.expect(Leg(2, 0, 7, {PEER: (0, 1)}))
    assert arrivals._early_bytes == 0
    reasons = [why for _, why, _ in refusals.all]
    assert reasons == [Reason.MALFORMED, Reason.MALFORMED, Reason.PLAN]
    assert arrivals.lost_by_reason == {}


def test_an_end_holds_until_its_average_has_been_taken():
    arrivals = Arrivals([4], RecordedRefusals())
    arrivals.ended(End(RUN, PEER, ME, 0, 5, 1))
    arrivals.ended(End(RUN, OTHER, ME, 0, 5, 2))  # it is one average ahead
    assert arrivals.absent(PEER, 6)
    assert not arrivals.absent(PEER, 5)
    arrivals.go_on(1)
    assert not arrivals.absent(PEER, 6)
    assert arrivals.absent(OTHER, 6)
    arrivals.ended(End(RUN, PEER, ME, 0, 5, 1))  # by a link that was broken
    assert not arrivals.absent(PEER, 6)
    arrivals.ended(End(RUN, PEER, ME, 0, 9, FOREVER))
    for number in (2, 3):
        arrivals.go_on(number)
        assert arrivals.absent(PEER, 10)
        assert not arrivals.absent(OTHER, 10)
    assert arrivals.ended_for_good == {PEER}
