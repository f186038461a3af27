"""Strategies for messages of both planes, from their fields' own types."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from washp2p.protocol.messages import control, frames
from washp2p.protocol.messages.records import Json

u64 = st.integers(0, 2**64 - 1)
near = st.integers(0, 40) | u64
"""Numbers, many of which mean something."""

json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.text(max_size=5)
    | st.floats(width=16, allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def values_of(hint):
    """Values that fit a field's type."""
    if hint == Json:
        return json
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return values_of(arguments[0])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=4)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values_of(arguments[1]), max_size=3)
    return {
        int: near,
        str: st.text(max_size=20),
        bytes: st.binary(max_size=32),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


def records(kinds):
    """Records of any of these kinds."""
    hints = {kind: get_type_hints(kind, include_extras=True) for kind in kinds}
    return st.one_of(
        *(
            st.builds(kind, *(values_of(hints[kind][field.name]) for field in fields(kind)))
            for kind in kinds
        )
    )


control_messages = records(control.messages.kinds)
data_headers = records(frames.headers.kinds)
