"""The contract of `Transport`, kept by every transport there is."""

from __future__ import annotations

import threading
import time
from itertools import count

import pytest

from washp2p.errors import UsageError
from washp2p.protocol.ledger import Channel, Count, Kind
from washp2p.protocol.patience import Patience
from washp2p.transports.listening import SCHEMES, listen

_names = count()


@pytest.fixture(params=sorted(SCHEMES))
def address(request, tmp_path):
    return {
        "tcp": lambda: "tcp://127.0.0.1:*",
        "ipc": lambda: f"ipc://{tmp_path}/{next(_names)}",
        "torch": lambda: "torch://127.0.0.1:*/cpu",
        "memory": lambda: f"memory://conformance-{next(_names)}",
    }[request.param]


@pytest.fixture
def members(address):
    """Three transports, each connected to the two others."""
    transports = [listen(address(), Patience(1)) for _ in range(3)]
    for me, transport in enumerate(transports):
        for peer, other in enumerate(transports):
            if peer != me:
                transport.connect(peer, other.endpoint)
    yield transports
    for transport in transports:
        transport.close()


def views(*parts):
    return tuple(memoryview(part) for part in parts)


def test_messages_arrive_whole_and_in_order(members):
    a, b, c = members
    sizes = [0, 1, 255, 256, 70_000, 3_000_000]
    for number, size in enumerate(sizes):
        a.send(1, Kind.EXCHANGE, b"a%d" % number, views(bytes([number]) * size, b"end"))
        c.send(1, Kind.EXCHANGE, b"c%d" % number, ())
    seen = {b"a": [], b"c": []}
    for _ in range(2 * len(sizes)):
        message = b.receive(10)
        sender, number = bytes(message.header[:1]), int(bytes(message.header[1:]))
        seen[sender].append(number)
        if sender == b"a":
            assert bytes(message.payload) == bytes([number]) * sizes[number] + b"end"
        else:
            assert bytes(message.payload) == b""
    assert seen == {b"a": list(range(len(sizes))), b"c": list(range(len(sizes)))}


def test_buffers_may_be_reused_as_soon_as_send_returns(members):
    buffer = bytearray(100_000)
    for value in range(5):
        buffer[:] = bytes([value]) * len(buffer)
        members[0].send(1, Kind.EXCHANGE, b"h", views(buffer))
    received = [members[1].receive(10) for _ in range(5)]
    assert [bytes(m.payload) for m in received] == [bytes([v]) * 100_000 for v in range(5)]


def test_send_does_not_wait_for_the_peer_to_read_or_to_exist(members, address):
    for _ in range(3000):
        members[0].send(1, Kind.EXCHANGE, b"h", views(b"x" * 1000))
    assert members[1].receive(10) is not None
    late = address()
    members[0].connect(7, late.replace("*", "9"))
    members[0].send(7, Kind.EXCHANGE, b"h", ())


def test_a_link_breaks_with_its_peer_and_mends_with_who_takes_its_place(members):
    a, b, c = members
    a.send(1, Kind.EXCHANGE, b"before")
    assert b.receive(10) is not None
    while a.broken(1):
        a.mended()
    endpoint = b.endpoint
    b.close()
    while not a.broken(1):
        a.mended()
    a.send(2, Kind.EXCHANGE, b"others")
    assert bytes(c.receive(10).header) == b"others"
    a.send(1, Kind.EXCHANGE, b"lost")
    if endpoint.startswith("memory"):
        return  # which has no links that could mend
    again = listen(endpoint, Patience(1))
    try:
        while a.mended() != [1]:
            pass
        assert a.mended() == []
        a.send(1, Kind.EXCHANGE, b"after")
        assert bytes(again.receive(10).header) == b"after"
    finally:
        again.close()


def test_what_is_sent_to_who_is_let_go_of_is_lost(members):
    a, b, _ = members
    a.send(1, Kind.EXCHANGE, b"first")
    assert bytes(b.receive(10).header) == b"first"
    for _ in range(2):
        a.disconnect(1)
        a.send(1, Kind.EXCHANGE, b"lost", views(b"x"))
    assert a.broken(1)
    a.connect(1, b.endpoint)
    a.send(1, Kind.EXCHANGE, b"second")
    assert bytes(b.receive(10).header) == b"second"
    assert a.ledger.total(Kind.EXCHANGE).messages == 2


def test_receive_waits_for_its_timeout_and_no_longer(members):
    began = time.monotonic()
    assert members[0].receive(0.05) is None
    assert members[0].receive(0) is None
    assert 0.04 < time.monotonic() - began < 5


def test_interrupt_ends_a_wait_from_another_thread(members):
    thread = threading.Thread(target=members[0].interrupt)
    thread.start()
    assert members[0].receive(None) is None
    thread.join()
    members[0].interrupt()  # remembered
    assert members[0].receive(None) is None


def test_every_byte_sent_is_counted_by_peer_and_kind(members):
    members[0].send(1, Kind.EXCHANGE, b"12345", views(b"x" * 1000, b"y" * 10))
    members[0].send(1, Kind.EXCHANGE, b"123", views(b"z"))
    members[0].send(1, Kind.AVERAGE, b"1", ())
    members[0].send(2, Kind.STATE, b"12", views(b"abc"))
    scheme = members[0].endpoint.partition("://")[0]
    wire = {"torch": "gloo"}.get(scheme, scheme)
    assert members[0].ledger.counts == {
        Channel(1, Kind.EXCHANGE, wire): Count(payload=1011, header=8, messages=2),
        Channel(1, Kind.AVERAGE, wire): Count(payload=0, header=1, messages=1),
        Channel(2, Kind.STATE, wire): Count(payload=3, header=2, messages=1),
    }
    assert members[0].ledger.total(Kind.EXCHANGE).payload == 1011
    assert not members[1].ledger.counts


def test_close_lets_queued_messages_leave_and_may_be_repeated(members):
    members[0].send(1, Kind.EXCHANGE, b"bye", views(b"x" * 2_000_000))
    members[0].close(linger=10)
    members[0].close()
    message = members[1].receive(10)
    assert bytes(message.header) == b"bye"


def test_an_address_in_use_is_refused_in_one_line(members, address):
    with pytest.raises(UsageError, match="in use"):
        listen(members[0].endpoint)


def test_addresses_of_no_transport_are_refused(members):
    with pytest.raises(UsageError):
        members[0].connect(1, "nonsense")
    with pytest.raises(UsageError, match="expected one of tcp://, ipc://, torch://, memory://"):
        listen("carrier-pigeon://coop")
