"""Encrypted links: who is let in, who is believed, and who is cut off."""

from __future__ import annotations

import os
import socket
import time

import pytest
import zmq

from washp2p.protocol.ledger import Kind
from washp2p.protocol.patience import Patience
from washp2p.sockets.curve_auth import present
from washp2p.sockets.keys import KeyPair
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen

PATIENCE = Patience(2.0)
LARGEST = 10_000


class Party:
    """A transport with keys, and whom it takes for a member."""

    def __init__(self):
        self.keys = KeyPair.fresh()
        self.members = {}
        self.transport = listen(
            "tcp://127.0.0.1:*",
            PATIENCE,
            Credentials(self.keys, self.members.get),
            largest=LARGEST,
        )

    def know(self, number, other):
        self.members[other.keys.public] = number

    def link(self, number, other):
        self.transport.connect(number, other.transport.endpoint, other.keys.public)

    def say(self, number, word, count=1):
        for _ in range(count):
            self.transport.send(number, Kind.EXCHANGE, word)

    def hears(self, timeout=5.0):
        message = self.transport.receive(timeout)
        return None if message is None else (message.sender, bytes(message.header))


@pytest.fixture
def parties():
    """Members 0, 1 and 2, who know and reach each other."""
    three = [Party() for _ in range(3)]
    for one in three:
        for number, other in enumerate(three):
            if other is not one:
                one.know(number, other)
                one.link(number, other)
    yield three
    for one in three:
        one.transport.close()


@pytest.fixture
def stranger():
    """Makes DEALER sockets that connect to a party, with keys or without."""
    context = zmq.Context()
    context.set(zmq.BLOCKY, 0)

    sockets = []

    def connect(party, keys=None, server=None):
        dealer = context.socket(zmq.DEALER)
        sockets.append(dealer)
        if keys is not None:
            present(dealer, keys, server or party.keys.public)
        dealer.connect(party.transport.endpoint)
        return dealer

    yield connect
    for dealer in sockets:
        dealer.close(linger=0)
    context.term()


def test_a_message_is_of_whom_its_key_says(parties):
    a, b, c = parties
    a.say(1, b"from a")
    assert b.hears() == (0, b"from a")
    c.say(1, b"from c")
    assert b.hears() == (2, b"from c")
    b.say(0, b"back")
    assert a.hears() == (1, b"back")


@pytest.mark.parametrize("keys", ["none", "unknown", "for another server", "plain zmtp"])
def test_nobody_else_is_heard(parties, stranger, keys):
    _, b, c = parties
    if keys == "plain zmtp":
        host, port = b.transport.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            null = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0")
            raw.sendall(null + b"\x04\x19\x05READY\x0bSocket-Type" + os.urandom(200))
            assert b.hears(0.5) is None
    else:
        dealer = stranger(
            b,
            None if keys == "none" else KeyPair.fresh(),
            KeyPair.fresh().public if keys == "for another server" else None,
        )
        dealer.send(b"\x05hello")
        assert b.hears(0.5) is None
    c.say(1, b"still here")
    assert b.hears() == (2, b"still here")


@pytest.mark.alone
def test_who_knocks_before_it_is_known_gets_in_as_soon_as_it_is(parties):
    _, b, _ = parties
    late = Party()
    late.link(1, b)
    late.say(1, b"early")
    assert b.hears(0.3) is None
    b.know(7, late)
    began = time.monotonic()
    assert b.hears() == (7, b"early")
    assert time.monotonic() - began < 1
    late.transport.close()


def test_the_key_of_who_was_dropped_opens_nothing_any_more(parties):
    a, b, c = parties
    a.say(1, b"before")
    assert b.hears() == (0, b"before")
    del b.members[a.keys.public]
    a.say(1, b"after", 100)
    assert b.hears(0.5) is None
    a.transport.connect(1, b.transport.endpoint, b.keys.public)
    a.say(1, b"anew", 100)
    assert b.hears(0.5) is None
    c.say(1, b"fine")
    assert b.hears() == (2, b"fine")


def test_who_is_cut_off_is_read_no_more(parties):
    a, b, c = parties
    a.say(1, b"x", 50_000)
    assert b.hears() == (0, b"x")
    b.transport.cut(0, a.keys.public)
    heard = 0
    while b.hears(0.5) is not None:
        heard += 1
    assert heard == 0
    a.say(1, b"x", 100)
    c.say(1, b"fine")
    assert b.hears() == (2, b"fine")
    assert b.transport.broken(0)


def test_messages_in_parts_and_too_large_ones_carry_nothing(parties, stranger):
    a, b, c = parties
    dealer = stranger(b, a.keys)
    dealer.send_multipart([b"\x02hi", b"and", b"more"])
    assert b.hears() == (0, b"")  # which is no header
    dealer.send(b"")
    assert b.hears() == (0, b"")
    dealer.send(b"\x02hi" + bytes(LARGEST))
    assert b.hears(0.3) is None
    c.say(1, b"fine")
    assert b.hears() == (2, b"fine")


def test_a_link_whose_handshake_was_spoilt_is_made_anew(parties):
    """ZeroMQ itself gives up once somebody has answered with what is no handshake."""
    _, b, _ = parties
    with socket.create_server(("127.0.0.1", 0)) as spoiler:
        port = spoiler.getsockname()[1]
        a = Party()
        a.transport.connect(1, f"tcp://127.0.0.1:{port}", b.keys.public)
        connection, _ = spoiler.accept()
        connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0"))
        connection.close()
    b.know(9, a)
    b.transport.close()
    peer = listen(f"tcp://127.0.0.1:{port}", PATIENCE, Credentials(b.keys, lambda key: 9))
    deadline = time.monotonic() + 20
    while not a.transport.mended():
        assert time.monotonic() < deadline
        a.transport.receive(0.05)
    a.say(1, b"at last")
    message = peer.receive(5)
    assert (message.sender, bytes(message.header)) == (9, b"at last")
    peer.close()
    a.transport.close()
