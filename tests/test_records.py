"""Both planes' messages: what is encoded comes back, anything else is refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from washp2p import control, frames
from washp2p.control import messages
from washp2p.errors import ProtocolError
from washp2p.frames import headers

ids = st.integers(0, 2**16)
u64 = st.integers(0, 2**64 - 1)
run = st.binary(min_size=8, max_size=8)
names = st.sampled_from(
    ["start:buffer:bfloat16", "final:param", "mean65535:buffer:int64", "snapshot:65535"]
)
data_headers = st.one_of(
    st.builds(
        frames.Frame,
        run,
        ids,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 9),
        st.integers(0, 1000),
        u64,
    ),
    st.builds(frames.Fetch, run, ids, names, st.integers(0, 2**48), st.integers(0, 2**20)),
    st.builds(frames.Chunk, run, ids, names, st.integers(0, 2**48), st.integers(0, 2**48), run),
    st.builds(frames.End, run, ids, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(frames.Posted, run, ids, st.integers(0, 2**32 - 1)),
)
plain = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
control_messages = st.one_of(
    st.builds(control.Hello, u64, u64, st.text(), st.text(), u64),
    st.builds(control.Welcome, ids, run, st.text(), st.dictionaries(st.text(), plain, max_size=3)),
    st.builds(control.Seeds, ids, run, u64, st.binary()),
    st.builds(control.Attach, st.lists(plain, max_size=3), st.text(), u64, st.just({})),
    st.builds(control.Stop, st.text(), u64),
    st.just(control.Ping()),
)


@given(data_headers)
def test_data_headers_round_trip_within_96_bytes(header):
    data = frames.headers.encode(header)
    assert len(data) < 96
    assert frames.headers.decode(data) == header


@given(control_messages)
def test_control_messages_round_trip(message):
    assert control.messages.decode(control.messages.encode(message)) == message


@given(st.binary(max_size=80))
def test_garbage_is_refused_and_nothing_else_is_raised(data):
    for codec in (frames.headers, control.messages):
        try:
            record = codec.decode(data)
        except ProtocolError:
            continue
        assert codec.decode(codec.encode(record)) == record


@given(data_headers, st.data())
def test_damaged_headers_are_refused_or_are_headers(header, data):
    encoded = bytearray(frames.headers.encode(header))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        frames.headers.decode(bytes(encoded))
    except ProtocolError:
        return
    with pytest.raises(ProtocolError):
        frames.headers.decode(bytes(encoded[:-1]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 0], "version"),
        ([3, 77], "kind 77"),
        ([3, True, b"12345678", 1, "x", 0, 1], "kind True"),
        ([3, 1, b"12345678", -1, "x", 0, 1], "fields of Fetch"),
        ([3, 1, b"12345678", True, "x", 0, 1], "fields of Fetch"),
        ([3, 1, b"12345678", 1, "x", 0], "fields of Fetch"),
        ({}, "not an array"),
        ([], "not an array"),
        ([3, 1, b"x" * 96, 1, "x", 0, 1], "at most 96"),
    ],
)
def test_wrong_headers_say_what_is_wrong(values, words):
    with pytest.raises(ProtocolError, match=words):
        frames.headers.decode(msgpack.packb(values))


def test_hello_and_refuse_keep_their_form_for_ever():
    hello = control.Hello(1, 2, "0.1.0", "a", 3)
    assert control.messages.encode(hello) == msgpack.packb([0, 1, 2, "0.1.0", "a", 3])
    assert control.messages.encode(control.Refuse("no")) == msgpack.packb([1, "no"])


def test_the_protocol_page_has_every_message_by_its_number():
    page = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    control, data = page.split("## 3. Data plane")
    for text, codec in ((control, messages), (data, headers)):
        rows = dict(re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE))
        assert rows == {str(n): kind.__name__ for n, kind in enumerate(codec.kinds)}
