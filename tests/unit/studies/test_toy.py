"""The two-dimensional example: its gradients, and what each method does with it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.studies.toy import (
    ALPHA,
    LR,
    METHODS,
    MINIMA,
    STARTS,
    STEPS,
    gradient,
    loss,
    reached,
    trajectories,
)

PLACES = st.tuples(st.floats(-3, 15), st.floats(-3, 15))


@given(PLACES)
def test_gradients_are_finite_differences(place):
    point = np.array(place)
    near = min(np.linalg.norm(point - np.array(minimum)) for minimum, _, _ in MINIMA)
    if near < 0.01:
        return  # at a cusp there is none
    step = 1e-6
    differences = [
        (loss(point + step * e) - loss(point - step * e)) / (2 * step) for e in np.eye(2)
    ]
    assert gradient(point) == pytest.approx(np.array(differences), abs=1e-5)


def test_the_loss_is_the_papers():
    def g(x, y, a, b, steepness):
        return np.exp(-steepness * np.sqrt(0.5 * ((x - a) ** 2 + (y - b) ** 2)))

    for x, y in ((0, 5), (9.5, 10), (3, 8), (-2, 7.25)):
        expected = -10 * g(x, y, 10, 10, 0.1) - 5 * g(x, y, 8, 3, 0.3) - 5 * g(x, y, 3, 8, 0.3)
        assert loss(np.array([x, y], dtype=float)) == pytest.approx(expected)
    grid = np.stack(np.meshgrid(np.linspace(0, 12, 241), np.linspace(0, 12, 241)), axis=-1)
    lowest = grid.reshape(-1, 2)[loss(grid).argmin()]
    assert lowest.tolist() == [10.0, 10.0]


def test_one_step_of_each_method():
    without = trajectories("none", runs=3, noise=0.0)
    assert without.shape == (STEPS + 1, 3, 2, 2)
    stepped = STARTS - LR * gradient(STARTS)
    assert without[1, 0] == pytest.approx(stepped)
    pulled = ALPHA * stepped + (1 - ALPHA) * stepped.mean(0)
    assert trajectories("papa", runs=1, noise=0.0)[1, 0] == pytest.approx(pulled)
    path = trajectories("wash", runs=200, noise=0.0)
    for before, after in pairwise(path[:51]):
        plain = before - LR * gradient(before)
        swapped = plain[:, ::-1]
        same, other = np.isclose(after, plain).all(1), np.isclose(after, swapped).all(1)
        assert (same | other).all()


def test_shuffling_reaches_the_global_minimum_and_the_others_do_not():
    """The claim of figure 3, over 100 seeds."""
    share = {
        method: reached(trajectories(method, runs=100, noise=0.3)).mean() for method in METHODS
    }
    assert share["wash"] > 0.6
    assert share["papa"] < 0.2
    assert share["none"] < 0.05
