"""The bound on lateness, held against a model of two members and the link between them."""

from __future__ import annotations

import pytest

from benchmarks.distance import kept
from washp2p.rounds.delay import LIMIT, RECENT, WORTH_WAITING, AutoDelay, FixedDelay, delay_for


class Side:
    """One member in simulated time: when it ended its steps, and how long it waited."""

    def __init__(self, delay):
        self.delay = delay
        self.posted = [0.0]
        self.clock = self.share = self.waited = 0.0
        self.applied = 0

    def step(self, seconds):
        self.began = self.clock
        self.clock += seconds
        self.posted.append(self.clock)

    def wait(self, peer, latency):
        number = len(self.posted) - 1
        due = number - self.delay.bound
        arrival = peer.posted[due] + latency if due > 0 else 0.0
        waited = max(0.0, arrival - self.clock)
        self.clock += waited
        lateness = 0
        while (
            self.applied < number
            and peer.posted[self.applied + 1 :]
            and (peer.posted[self.applied + 1] + latency <= self.clock)
        ):
            self.applied += 1
            lateness = max(lateness, number - self.applied)
        elapsed = self.clock - self.began
        self.share += RECENT * (waited / elapsed - self.share)
        self.waited += waited
        self.delay.observe(
            waited=waited,
            elapsed=elapsed,
            useful=peer.share > WORTH_WAITING,
            lateness=lateness,
        )


def run(steps, latency, rounds=1500):
    """Both sides after many rounds; what each waited in the last 200."""
    sides = [Side(AutoDelay()) for _ in steps]
    for number in range(rounds):
        if number == rounds - 200:
            for side in sides:
                side.waited = 0.0
        for side, seconds in zip(sides, steps, strict=True):
            side.step(seconds)
        for side, peer in (sides, sides[::-1]):
            side.wait(peer, latency)
    return sides


def test_fifty_milliseconds_each_way_and_ten_millisecond_steps():
    for side in run((0.010, 0.010), 0.050):
        assert 5 <= side.delay.bound <= 7
        assert side.waited < 0.02 * 200 * 0.010


def test_no_latency_needs_no_delay():
    assert [side.delay.bound for side in run((0.010, 0.010), 0.00005)] == [0, 0]


@pytest.mark.parametrize("latency", [0.0001, 0.050])
def test_a_slower_peer_does_not_drive_the_bound_up(latency):
    """Waiting for who computes more slowly buys nothing by later rounds."""
    fast, slow = run((0.010, 0.013), latency)
    assert slow.waited < 0.02 * 200 * 0.013
    assert fast.delay.bound <= (8 if latency > 0.01 else 2)


def test_the_bound_has_a_limit():
    assert all(side.delay.bound == LIMIT for side in run((0.001, 0.001), 1.0))


def test_it_comes_down_again():
    delay = AutoDelay()
    for _ in range(60):
        delay.observe(waited=0.5, elapsed=1.0, useful=True, lateness=delay.bound)
    high = delay.bound
    assert high > 10
    for _ in range(200):
        delay.observe(waited=0.0, elapsed=1.0, useful=True, lateness=2)
    assert delay.bound == 2


def test_what_the_flag_means():
    assert isinstance(delay_for("auto"), AutoDelay)
    for text, bound in (("0", 0), ("8", 8), ("none", None)):
        delay = delay_for(text)
        assert isinstance(delay, FixedDelay)
        assert delay.bound == bound


@pytest.mark.parametrize(("p", "delay", "low", "high"), [(0.05, 0, 1, 1), (0.05, 4, 0.7, 0.9)])
def test_late_rounds_do_not_keep_the_distance_between_members(p, delay, low, high):
    """docs/methods.md: equation 5 holds in lockstep only."""
    assert low - 1e-9 <= kept(p, delay) <= high + 1e-9
