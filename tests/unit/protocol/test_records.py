"""Both planes' messages: what is encoded comes back, anything else is refused."""

from __future__ import annotations

import re

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import control_messages
from tests.support.sources import ROOT
from washp2p.errors import ProtocolError
from washp2p.protocol.messages import control, frames
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.frames import headers

ids = st.integers(0, 2**16)
u64 = st.integers(0, 2**64 - 1)
run = st.binary(min_size=8, max_size=8)
names = st.sampled_from(
    ["start4294967295:65535", "final65535.4294967295:99", "snapshot:65535:65535"]
)
data_headers = st.one_of(
    st.builds(
        frames.Frame,
        run,
        ids,
        ids,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 9),
        st.integers(0, 1000),
        u64,
        st.integers(0, 3),
    ),
    st.builds(frames.Fetch, run, ids, ids, names, st.integers(0, 2**48), st.integers(0, 2**20)),
    st.builds(
        frames.Chunk, run, ids, ids, names, st.integers(0, 2**48), st.integers(0, 2**48), run
    ),
    st.builds(frames.End, run, ids, ids, *[st.integers(0, 2**32)] * 3),
    st.builds(frames.Posted, run, ids, ids, st.integers(0, 2**32 - 1), st.integers(0, 3)),
)


@given(data_headers)
def test_data_headers_round_trip_within_96_bytes(header):
    data = frames.headers.encode(header)
    assert len(data) < frames.HEADER_LIMIT
    assert frames.headers.decode(data) == header


@given(control_messages)
def test_control_messages_of_every_kind_round_trip(message):
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


@given(control_messages, st.data())
def test_damaged_control_messages_are_refused_or_are_messages(message, data):
    encoded = bytearray(control.messages.encode(message))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(encoded), bytes(encoded[:at])):
        try:
            found = control.messages.decode(damaged)
        except ProtocolError:
            continue
        assert control.messages.decode(control.messages.encode(found)) == found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3, "x", 3], "fields of Claim"),
        ([3, "x", 3, [1]], "Claim.held has 1; expected an array of 2"),
        ([3, "x", 3, [[1, -2]]], "Claim.held has -2; expected int"),
        ([3, "x" * 301, 3, []], "Claim.host has 301 items; expected at most 300"),
        ([5, [[], [], []], "e", [], "", b"x" * 33, 1, {}, ""], "Attach.key has 33 items"),
        (
            [5, [[["a", [1], [1], 0, 0.0]], [], []], "e", [], "", b"", 1, {}, ""],
            "Attach.layout has 0.0",
        ),
        ([17, {"a": b"bytes"}], "Metrics.values has b'bytes'; expected what JSON has"),
        ([17, {b"a": 1}], "Metrics.values has dict; expected a map with names"),
        ([17, {"a": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}], "16 deep"),
        ([18, 1, [0], [1.0], float("nan"), 1.0, 1.0], "Result.ensemble is nan; expected a number"),
        ([17, {"a": msgpack.Timestamp(1)}], "Metrics.values"),
    ],
)
def test_values_that_do_not_fit_a_messages_schema_are_named(values, words):
    with pytest.raises(ProtocolError, match=re.escape(words)):
        control.messages.decode(msgpack.packb(values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 0], "version"),
        ([5, 77], "kind 77"),
        ([5, True, b"12345678", 1, 2, "x", 0, 1], "kind True"),
        ([5, 1, b"12345678", -1, 2, "x", 0, 1], "fields of Fetch"),
        ([5, 1, b"12345678", True, 2, "x", 0, 1], "fields of Fetch"),
        ([5, 1, b"12345678", 1, 2, "x", 0], "fields of Fetch"),
        ({}, "not an array"),
        ([], "not an array"),
        ([5, 1, b"x" * 96, 1, 2, "x", 0, 1], "at most 96"),
    ],
)
def test_wrong_headers_say_what_is_wrong(values, words):
    with pytest.raises(ProtocolError, match=words):
        frames.headers.decode(msgpack.packb(values))


@pytest.mark.parametrize("codec", [frames.headers, control.messages])
@pytest.mark.parametrize("depth", [80, 900, 1015, 5000])
@pytest.mark.parametrize("head", [b"\x92\x00", b"\x92", b"\x93\x03\x00", b"\x93\x03\x03\x01", b""])
def test_records_of_any_depth_are_refused_not_shown(codec, depth, head):
    with pytest.raises(ProtocolError):
        codec.decode(head + b"\x91" * depth + b"\x90")


def test_a_refusal_is_short_whatever_is_refused():
    for values in ([0, [[]] * 100_000], [17, {"a" * 500: b"b" * 500}], ["x" * 10_000], [3, {}, 1]):
        with pytest.raises(ProtocolError) as refused:
            control.messages.decode(msgpack.packb(values))
        assert len(str(refused.value)) < 600


def test_hello_and_refuse_keep_their_form_for_ever():
    hello = control.Hello(1, 2, "0.1.0", "a", 3)
    assert control.messages.encode(hello) == msgpack.packb([0, 1, 2, "0.1.0", "a", 3])
    assert control.messages.encode(control.Refuse("no")) == msgpack.packb([1, "no"])


def test_the_protocol_page_has_every_message_by_its_number():
    page = (ROOT / "docs" / "protocol.md").read_text()
    control, data = page.split("## 3. Data plane")
    for text, codec in ((control, messages), (data, headers)):
        rows = dict(re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE))
        assert rows == {str(n): kind.__name__ for n, kind in enumerate(codec.kinds)}
