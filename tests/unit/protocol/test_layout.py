"""Layouts: equality that matters, and what comes off the wire."""

from __future__ import annotations

import pytest

from tests.support.layouts import make_layout
from washp2p.protocol.layout import Layout


def test_parameters_begin_on_64_byte_lines_and_padding_does_not_count():
    layout = make_layout([[5, 16], [1]])
    assert [e.offset for e in layout.entries] == [0, 16, 32]
    assert (layout.size, layout.values, layout.layers) == (33, 22, 2)


def test_wire_round_trip():
    layout = make_layout([[5, 16], [1]], slots=("param", "momentum_buffer"))
    again = Layout.from_wire(layout.to_wire())
    assert again == layout
    assert layout.scalar_bytes == 8


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make_layout([[5, 17], [1]]), "0.1[16] (stride [1], layer 0) against 0.1[17]"),
        (make_layout([[5, 16]]), "3 parameters against 2"),
        (make_layout([[5, 16], [1]], dtype="bfloat16"), "slots [param float32] against"),
        (make_layout([[5], [16], [1]]), "layer 0"),
    ],
)
def test_difference_names_both_sides(other, words):
    layout = make_layout([[5, 16], [1]])
    assert words in layout.difference(other)
    assert not layout.difference(make_layout([[5, 16], [1]]))


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        [[], [["param", "float32"]]],
        [[["a", [3], [1], 0, 0]], []],
        [[["a", [3], [1], 0, 0]], [["momentum_buffer", "float32"]]],
        [[["a", [3], [1], 0, 0]], [["param", "complex64"]]],
        [[["a", [3], [1], 0, 0], ["b", [3], [1], 0, 2]], [["param", "float32"]]],
        [[["a", ["x"], [1], 0, 0]], [["param", "float32"]]],
        [[["a", [3], [1], 0]], [["param", "float32"]]],
    ],
)
def test_what_is_not_a_layout_is_refused(wire):
    with pytest.raises(ValueError, match="not a layout"):
        Layout.from_wire(wire)


def test_a_layout_of_before_buffers_were_in_it_is_read():
    entries, slots, _ = make_layout([[9, 3], [12]]).to_wire()
    assert Layout.from_wire([entries, slots]) == make_layout([[9, 3], [12]])
