"""Plans ahead of need: every round's plan is its seed's, whatever the order of things."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from washp2p.driver.planner import MOST, ROOM, Planner


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.sampled_from([1, ROOM // 3, 2 * ROOM]),
)
def test_every_round_gets_the_plan_of_its_seed(window, strides, size):
    """Seeds arrive in windows; rounds may be skipped."""
    seeds, derived = {}, []

    def derive(seed):
        derived.append(seed)
        return seed + 0.5

    planner = Planner(derive, seeds.get, lambda _: size)
    number = 0
    for stride in strides:
        number += stride
        while number not in seeds:
            first = len(seeds) + 1
            seeds.update({k: 1000 + k for k in range(first, first + window)})
        assert planner.take(number) == 1000 + number + 0.5
    planner.close()
    ahead = max(1, min(MOST, ROOM // size))
    assert max(derived) <= 1000 + number + ahead
    assert len(derived) == len(set(derived))  # none twice


def test_plans_are_derived_ahead_and_elsewhere():
    threads = set()
    done = threading.Semaphore(0)

    def derive(seed):
        threads.add(threading.current_thread().name)
        done.release()
        return seed

    planner = Planner(derive, lambda number: number, lambda _: 1)
    planner.prepare()
    assert planner.take(1) == 1
    for _ in range(1 + MOST):
        assert done.acquire(timeout=10)  # without another `take`
    planner.close()
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


def test_an_error_reaches_the_training_thread():
    def derive(_):
        raise ValueError("no plan")

    planner = Planner(derive, lambda number: number, lambda _: 1)
    with pytest.raises(ValueError, match="no plan"):
        planner.take(1)
    planner.close()
