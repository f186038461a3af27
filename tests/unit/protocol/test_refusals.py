"""Allowances: what is refused is counted, who keeps at it is an offender, once."""

from __future__ import annotations

from washp2p.protocol.refusals import TOLD, Reason, Refusals


def refusals(burst=3.0):
    now, told = [0.0], []
    return Refusals(rate=1.0, burst=burst, tell=told.append, clock=lambda: now[0]), now, told


def test_an_allowance_is_used_up_and_fills_up_again():
    one, now, _ = refusals()
    for _ in range(3):
        one.refuse(7, Reason.MALFORMED, "x")
    assert one.take_offenders() == {}
    now[0] = 2.0
    for _ in range(2):
        one.refuse(7, Reason.MALFORMED, "x")
    assert one.take_offenders() == {}
    one.refuse(7, Reason.AGAIN, "y")
    assert one.take_offenders() == {7: "messages sent again, as y"}
    assert one.take_offenders() == {}
    assert one.refused == {Reason.MALFORMED: 5, Reason.AGAIN: 1}


def test_nobody_pays_for_another_and_nobody_for_what_cannot_be_told():
    one, _, told = refusals()
    for _ in range(100):
        one.refuse(None, Reason.MALFORMED, "x")
        one.refuse(1, Reason.RUN, "x", cost=0.01)
    assert one.take_offenders() == {}
    one.charge(2, 4, "too much")
    assert one.take_offenders() == {2: "too much"}
    assert told == ["refused a message malformed: x", "refused a message of another run: x"]


def test_a_crowd_that_misbehaves_is_not_told_one_by_one():
    one, _, told = refusals()
    for peer in range(1000):
        one.refuse(peer, Reason.MALFORMED, "x")
    assert len(told) == TOLD
    assert one.refused[Reason.MALFORMED] == 1000


def test_what_is_remembered_of_peers_that_behave_is_forgotten():
    one, now, _ = refusals()
    for peer in range(1000):
        one.charge(peer, 1, "x")
    now[0] = 10.0
    one.charge(5, 2, "x")
    one.forget_idle()
    assert list(one._used) == [5]
