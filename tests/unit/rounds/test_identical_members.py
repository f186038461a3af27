"""Members that are one model over again are noticed, and nobody else is."""

from __future__ import annotations

import numpy as np
import pytest

from washp2p.rounds import identical_members as module
from washp2p.rounds.identical_members import ENOUGH, ROUNDS, Likeness

D = 1000
RNG = np.random.default_rng(0)


def indices():
    return np.sort(RNG.choice(D, 60, replace=False))


def test_equal_values_are_no_sign_before_they_have_changed():
    initial = RNG.standard_normal(D).astype(np.float32)
    likeness = Likeness(initial)
    for _ in range(50):  # a warm-up that begins with a rate of 0
        at = indices()
        likeness.observe(1, at, initial[at], initial[at])
    assert not likeness.same
    assert likeness.watches


@pytest.mark.parametrize("most", [1 << 22, 100])
def test_a_member_that_is_this_one_is_found_and_another_told_apart(monkeypatch, most):
    monkeypatch.setattr(module, "MOST", most)
    initial = RNG.standard_normal(D).astype(np.float32)
    likeness = Likeness(initial)
    values = initial.copy()
    rounds = 0
    while not likeness.same:
        rounds += 1
        values += 0.01
        at = indices()
        likeness.observe(1, at, values[at], values[at])
        other = values[at].copy()
        other[::7] += 1
        likeness.observe(2, at, values[at], other)
        assert rounds < 500
    assert likeness.same == {1}
    assert rounds >= max(ROUNDS, ENOUGH / 60)
    likeness.conclude({1, 2, 3})
    assert likeness.watches
    likeness.conclude({1, 2})
    assert not likeness.watches
    likeness.observe(3, at, values[at], values[at])
