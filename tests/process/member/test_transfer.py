"""State transfer: whole blobs, early requests, damaged and unasked-for chunks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.refusals import RecordedRefusals
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import Chunk, Fetch, checksum, headers
from washp2p.protocol.refusals import Reason
from washp2p.transports.listening import listen
from washp2p.transports.transfer import AHEAD, CHUNK_BYTES, EARLY, SERVED, Transfer

RUN = b"run-name"


@pytest.fixture
def pair(memory_address):
    transports = [listen(memory_address()) for _ in range(2)]
    transports[0].connect(1, transports[1].endpoint)
    transports[1].connect(0, transports[0].endpoint)
    yield [(t, Transfer(t, RUN, me, RecordedRefusals())) for me, t in enumerate(transports)]
    for transport in transports:
        transport.close()


def pump(pair):
    moved = True
    while moved:
        moved = False
        for transport, transfer in pair:
            while (message := transport.receive(0)) is not None:
                moved = True
                header = headers.decode(message.header)
                if isinstance(header, Fetch):
                    transfer.on_fetch(header)
                else:
                    transfer.on_chunk(header, message.payload)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * CHUNK_BYTES + 12345])
@pytest.mark.parametrize("offered_first", [True, False])
def test_a_blob_arrives_whole_and_is_counted(pair, size, offered_first):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    into = np.zeros_like(data)
    (donor_wire, donor), (_, receiver) = pair
    if offered_first:
        donor.offer("start:param", data.data, Kind.STATE)
    download = receiver.fetch(0, "start:param", into.data, kind=Kind.STATE)
    pump(pair)
    assert download.done is offered_first
    donor.offer("start:param", data.data, Kind.STATE)
    pump(pair)
    assert download.done
    np.testing.assert_array_equal(into, data)
    count = donor_wire.ledger.total(Kind.STATE)
    assert (count.payload, count.messages) == (size, -(-size // CHUNK_BYTES))
    assert count.header < 96 * count.messages


def test_a_part_of_a_blob(pair):
    data = np.arange(256, dtype=np.uint8)
    into = np.zeros(56, dtype=np.uint8)
    pair[0][1].offer("final:param", data.data, Kind.AVERAGE)
    pair[1][1].fetch(0, "final:param", into.data, kind=Kind.AVERAGE, offset=200)
    pump(pair)
    np.testing.assert_array_equal(into, data[200:])


def test_damaged_and_unasked_for_chunks_change_nothing(pair):
    into = np.zeros(8, dtype=np.uint8)
    receiver = pair[1][1]
    receiver.fetch(0, "start:param", into.data, kind=Kind.STATE)
    good, short = memoryview(b"12345678"), memoryview(b"1234")
    for chunk, payload, reason in [
        (Chunk(RUN, 0, 1, "start:param", 0, 8, b"wrong..."), good, Reason.CHECKSUM),
        (Chunk(RUN, 0, 1, "start:param", 0, 8, checksum(short)), short, Reason.LENGTH),
        (Chunk(RUN, 0, 1, "start:param", 0, 4, checksum(short)), short, Reason.LENGTH),
        (Chunk(RUN, 0, 1, "start:param", 0, 8, checksum(good)), memoryview(b""), Reason.LENGTH),
        (Chunk(RUN, 0, 1, "start:param", 0, 8, checksum(good)), good.tobytes() * 2, Reason.LENGTH),
        (Chunk(RUN, 0, 1, "start:param", 4, 8, checksum(good)), good, Reason.UNASKED),
        (Chunk(RUN, 0, 1, "mean:param", 0, 8, checksum(good)), good, Reason.UNASKED),
        (Chunk(RUN, 3, 1, "start:param", 0, 8, checksum(good)), good, Reason.UNASKED),
    ]:
        receiver.on_chunk(chunk, memoryview(payload))
        assert receiver.refusals.reasons[-1] is reason
    assert len(receiver.refusals.all) == 8
    assert not into.any()
    receiver.on_chunk(Chunk(RUN, 0, 1, "start:param", 0, 8, checksum(good)), good)
    assert bytes(into) == bytes(good)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 6 * CHUNK_BYTES + 5])
def test_a_blob_of_a_size_not_known_before(pair, size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    download = pair[1][1].fetch(0, "snapshot:1", None, kind=Kind.STATE, limit=size)
    pump(pair)
    assert not download.done
    pair[0][1].offer("snapshot:1", data.data, Kind.STATE)
    pump(pair)
    assert download.done
    assert bytes(download.into) == bytes(data)


def test_what_a_broken_link_lost_is_asked_for_again_and_what_comes_twice_is_ignored(pair):
    data = np.random.default_rng(1).integers(0, 256, 9 * CHUNK_BYTES, dtype=np.uint8)
    into = np.zeros_like(data)
    (donor_wire, donor), (wire, receiver) = pair
    donor.offer("start:param", data.data, Kind.STATE)
    download = receiver.fetch(0, "start:param", into.data, kind=Kind.STATE)
    assert donor_wire.receive(0) is not None  # one request lost
    donor.on_fetch(headers.decode(donor_wire.receive(0).header))
    assert wire.receive(0) is not None  # one answer lost
    assert receiver.peers() == {0}
    for _ in range(3):  # the links broke in both directions, and again
        receiver.again(0)
    pump(pair)
    assert download.done
    assert not receiver.refusals.reasons
    assert receiver.peers() == set()
    np.testing.assert_array_equal(into, data)


def test_what_is_not_wanted_any_more_changes_nothing(pair):
    into = np.zeros(8, dtype=np.uint8)
    receiver = pair[1][1]
    receiver.fetch(0, "start:param", into.data, kind=Kind.STATE)
    receiver.cancel()
    pair[0][1].offer("start:param", memoryview(b"12345678"), Kind.STATE)
    pump(pair)
    assert not into.any()
    assert not receiver.refusals.reasons


def test_requests_beyond_a_blob_are_refused(pair):
    donor = pair[0][1]
    donor.offer("start:param", memoryview(b"12345678"), Kind.STATE)
    for offset, length in [(9, 1), (0, CHUNK_BYTES + 1), (2**60, 1)]:
        donor.on_fetch(Fetch(RUN, 1, 0, "start:param", offset, length))
    assert donor.refusals.reasons == [Reason.REQUEST] * 3
    donor.withdraw("start:")
    donor.on_fetch(Fetch(RUN, 1, 0, "start:param", 0, 8))  # waits until it is offered again
    assert pair[1][0].receive(0) is None


def test_a_blob_larger_than_it_may_be_is_not_made_room_for(pair):
    download = pair[1][1].fetch(0, "snapshot:1", None, kind=Kind.STATE, limit=1000)
    pair[0][1].offer("snapshot:1", memoryview(bytes(1001)), Kind.STATE)
    pump(pair)
    assert download.into is None
    assert pair[1][1].refusals.reasons == [Reason.LENGTH]


def test_a_peer_that_asks_and_asks_is_not_served_for_ever(pair):
    wire, donor = pair[0]
    donor.offer("start:param", memoryview(b"12345678"), Kind.STATE)
    for _ in range(1000):
        donor.on_fetch(Fetch(RUN, 1, 0, "start:param", 0, 8))
        donor.on_fetch(Fetch(RUN, 1, 0, "nothing", 0, 8))
    assert wire.ledger.total(Kind.STATE).messages == SERVED * AHEAD
    assert set(donor.refusals.reasons) == {Reason.REQUEST}
    assert len(donor.refusals.all) == 2000 - SERVED * AHEAD - EARLY
