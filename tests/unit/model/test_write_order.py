"""The newest writer of each scalar, against a plain dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from washp2p.model.write_order import WriteOrder

writes = st.lists(
    st.tuples(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 9)), max_size=12
)


@given(writes, st.integers(0, 9), st.integers(1, 9))
def test_it_knows_what_newer_rounds_wrote(noted, forgotten, number):
    newest, expected = WriteOrder(), {}
    for indices, round_number in noted:
        newest.note(np.array(sorted(indices, reverse=True)), round_number)
        for index in indices:
            expected[index] = max(expected.get(index, 0), round_number)
    newest.forget(forgotten)
    everything = np.arange(32)
    free = newest.free(everything, number)
    for index in everything:
        writer = expected.get(index, 0)
        assert free[index] == (writer <= max(number, forgotten))
    assert len(newest) == sum(writer > forgotten for writer in expected.values())
