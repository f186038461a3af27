"""Surveys: an unbiased estimate from a sample, exact from all scalars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.machine.observation import OPEN, Surveys
from tests.support.layouts import make_layout
from washp2p.plan.plan import everything
from washp2p.plan.survey import SAMPLE, Survey, sample
from washp2p.protocol.messages.from_worker import Surveyed

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=5)


def parts(layout, held, *, seed=0, exact):
    """What each member finds, of `held`: members x flat vector."""
    n = len(held)
    found = []
    for position in range(n):
        survey = Survey(layout, seed, n, position, exact=exact)
        at = survey.plan.receive.indices
        found.append(survey.squares([each[at] for each in held]))
    return np.array(found)


def quarters(layout, held):
    values = held[:, everything(layout)].astype(np.float64)
    squares = ((values - values.mean(0)) ** 2).mean(0)
    return [
        part.sum() for part in np.split(squares, [-(-len(squares) * q // 4) for q in (1, 2, 3)])
    ]


@given(SIZES, st.integers(2, 6))
@settings(max_examples=30)
def test_of_all_scalars_it_is_the_distance(sizes, n):
    layout = make_layout([sizes])
    held = np.random.default_rng(1).normal(size=(n, layout.size)).astype(np.float32)
    found = parts(layout, held, exact=True).sum(0)
    assert found == pytest.approx(quarters(layout, held), rel=1e-9)


def test_of_a_sample_it_is_so_on_average():
    layout = make_layout([[40_000]])
    held = np.random.default_rng(2).normal(size=(3, layout.size)).astype(np.float32)
    found = [parts(layout, held, seed=seed, exact=False).sum(0) for seed in range(40)]
    error = np.mean(found, 0) / quarters(layout, held) - 1
    assert abs(error).max() < 4 / np.sqrt(SAMPLE * 40)


@given(st.integers(1, 20_000), st.integers(0, 2**63 - 1))
@settings(max_examples=50)
def test_a_sample_has_some_of_every_quarter(values, seed):
    chosen = sample(values, seed)
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < values
    sizes = np.bincount(np.arange(values) * 4 // values, minlength=4)
    counts = np.bincount(chosen * 4 // values, minlength=4)
    small = sizes <= SAMPLE
    assert (counts[small] == sizes[small]).all()
    assert (counts[~small] > SAMPLE / 2).all()
    assert counts.max() <= SAMPLE


def test_parts_make_a_whole_and_what_is_lost_is_forgotten():
    surveys = Surveys()
    assert surveys.add(0, Surveyed(5, 2, False, [1.0, 0.0, 0.0, 0.0])) is None
    whole = surveys.add(1, Surveyed(5, 2, False, [8.0, 4.0, 0.0, 3.0]))
    assert whole == {
        "round": 5,
        "members": 2,
        "exact": False,
        "distance": 4.0,
        "quarters": [3.0, 2.0, 0.0, pytest.approx(3**0.5)],
    }
    for number in range(1, OPEN + 2):
        assert surveys.add(0, Surveyed(number, 2, True, [1.0] * 4)) is None
    assert surveys.add(1, Surveyed(1, 2, True, [1.0] * 4)) is None
    assert surveys.add(1, Surveyed(OPEN + 1, 2, True, [1.0] * 4)) is not None
