"""How long a worker waits for a coordinator."""

from __future__ import annotations

from washp2p.coordinator_link.absence import Absence
from washp2p.protocol.patience import Patience


def absence():
    made = Absence("tcp://here:1", 0.0)
    made.patience = Patience(1.0)
    return made


def test_a_coordinator_that_is_gone_is_waited_for_sixty_times_the_patience():
    made = absence()
    made.heard(100.0)
    made.begin(101.0)
    made.begin(150.0)  # it has been lost for longer
    assert made.lasts
    assert made.problem(161.0) is None
    assert "has been gone for 60 s" in str(made.problem(161.5))


def test_a_process_that_was_suspended_waits_twice_the_patience():
    made = absence()
    made.heard(100.0)
    made.begin(103.0)  # it has heard nothing for three seconds
    assert made.problem(105.0) is None
    assert "heard nothing for 3 s" in str(made.problem(105.5))


def test_a_coordinator_that_is_back_is_back():
    made = absence()
    assert not made.end(0.5)
    made.begin(1.0)
    assert made.end(30.0)
    assert not made.lasts
    assert made.problem(1000.0) is None
    made.begin(31.0)
    assert made.problem(40.0) is None  # it has heard of it when that was back
