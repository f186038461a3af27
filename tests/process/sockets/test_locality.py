"""Places: who can be reached without a network."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.hosts import missing, namespaces
from washp2p.protocol.ledger import Kind
from washp2p.protocol.patience import Patience
from washp2p.transports.listening import listen
from washp2p.transports.locality import near_address, this_place

SAY = "from washp2p.transports.locality import this_place; print(this_place())"


def place_of(*where):
    command = [*where, sys.executable, "-c", SAY]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_processes_beside_each_other_are_at_one_place():
    assert place_of() == this_place()
    assert len(this_place()) == 16


@pytest.mark.skipif(bool(missing()), reason=str(missing()))
def test_one_host_name_with_two_networks_is_two_places():
    with namespaces(["a", "b"]) as names:
        places = {place_of("ip", "netns", "exec", name) for name in names}
    assert len(places | {this_place()}) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: abstract sockets")
def test_a_member_is_reached_at_both_of_its_addresses():
    assert near_address() != near_address()
    receiver = listen("tcp://127.0.0.1:*", near=near_address())
    senders = [listen("tcp://127.0.0.1:*") for _ in range(2)]
    for sender, address in zip(senders, (receiver.endpoint, *receiver.near), strict=True):
        sender.connect(0, address)
        sender.send(0, Kind.EXCHANGE, address[:3].encode())
    words = {bytes(receiver.receive(10).header) for _ in senders}
    assert words == {b"tcp", b"ipc"}
    assert [link.wire for sender in senders for link in sender.ledger.counts] == ["tcp", "ipc"]
    for transport in (receiver, *senders):
        transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: abstract sockets")
def test_where_the_near_address_does_not_work_the_other_one_is_taken():
    receiver, sender = listen("tcp://127.0.0.1:*"), listen("tcp://127.0.0.1:*", Patience(0.1))
    sender.connect(0, near_address(), otherwise=[receiver.endpoint])
    while sender.broken(0):
        sender.mended()
    sender.send(0, Kind.EXCHANGE, b"x")
    assert bytes(receiver.receive(10).header) == b"x"
    assert [link.wire for link in sender.ledger.counts] == ["tcp"]
    for transport in (receiver, sender):
        transport.close()
