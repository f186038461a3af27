"""Windows of seeds: ahead of the fastest, of a stated size, none twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.machine.publication import AHEAD, LARGEST, SMALLEST, SeedWindows


@given(st.integers(0, 5000), st.lists(st.tuples(st.integers(0, 40), st.floats(0, 2000))))
def test_windows_are_consecutive_bounded_and_ahead(rounds, steps):
    windows = SeedWindows(rounds)
    fastest = published = 0
    for step, rate in steps:
        fastest = min(fastest + step, published)
        while window := windows.due(fastest, rate):
            assert window.start == published + 1
            assert len(window) <= LARGEST
            if rounds:
                assert len(window) <= max(SMALLEST, rounds * 0.05)
            published += len(window)
        assert published == windows.published
        assert published >= min(rounds or fastest + SMALLEST, fastest + AHEAD * SMALLEST)
        assert not rounds or published <= rounds
