"""The population's curves: points often enough, and never too many."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.watch.history import EVERY_SECONDS, FRACTION, History


def walk(history, times):
    for now in times:
        if history.due(now):
            history.add({"round": int(now)}, now)
    return [point["seconds"] for point in history.points]


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=300))
def test_points_are_as_far_apart_as_they_must_be_and_no_farther(steps):
    now, times = 1000.0, [1000.0]
    for step in steps:
        now += step
        times.append(now)
    seconds = walk(History([]), times)
    assert seconds[0] == 0.0
    for before, after in pairwise(seconds):
        assert after - before >= max(EVERY_SECONDS, after / FRACTION) - 0.002
    assert times[-1] - times[0] - seconds[-1] <= max(
        EVERY_SECONDS, (now - times[0]) / FRACTION
    ) + max(steps)


def test_a_week_is_a_few_thousand_points():
    seconds = walk(History([]), range(0, 7 * 86400, 2))
    assert 2000 < len(seconds) < 4500


def test_another_coordinator_goes_on_after_the_last_point():
    history = History([{"seconds": 0.0, "round": 1}, {"seconds": 50.0, "round": 9}])
    assert history.due(7.0)
    assert history.add({"round": 10}, 7.0) == {"seconds": 50.0, "round": 10}
    assert not history.due(7.5)
    assert history.due(8.1)


def test_what_came_after_a_checkpoint_is_forgotten():
    history = History([{"seconds": float(k), "round": 10 * k} for k in range(5)])
    history.rewind(30)
    assert [point["round"] for point in history.points] == [0, 10, 20]
