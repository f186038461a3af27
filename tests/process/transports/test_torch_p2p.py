"""What is special about torch.distributed: values from a device, dead peers, another way."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from washp2p.errors import UsageError
from washp2p.protocol.ledger import Channel, Count, Kind
from washp2p.protocol.patience import Patience
from washp2p.sockets.keys import KeyPair
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen
from washp2p.transports.nearest import NearestTransport
from washp2p.transports.pair import Pair
from washp2p.transports.torch_p2p import TorchTransport

CPU = "torch://127.0.0.1:*/cpu"
TCP = "tcp://127.0.0.1:*"

PEER = """
import sys
from washp2p.protocol.patience import Patience
from washp2p.transports.torch_p2p import TorchTransport
transport = TorchTransport("torch://127.0.0.1:*/cpu", Patience(1))
print(transport.endpoint, flush=True)
transport.connect(0, sys.argv[1])
while True:
    message = transport.receive(None)
    if message is not None:
        print(message.payload.nbytes, flush=True)
"""


@pytest.fixture
def made():
    made = []
    yield made
    for transport in made:
        transport.close()


@pytest.fixture
def pair(made):
    """Two transports, connected."""
    made += [TorchTransport(CPU, Patience(1)) for _ in range(2)]
    made[0].connect(1, made[1].endpoint)
    made[1].connect(0, made[0].endpoint)
    return made


@pytest.fixture
def nearest(made):
    """A function that makes a transport of both kinds."""

    def make():
        patience = Patience(1)
        wide = listen(TCP, patience)
        made.append(NearestTransport(wide, TorchTransport(CPU, patience), patience))
        return made[-1]

    return make


@pytest.fixture
def other(made):
    """A process with a transport that connects to the one made here."""
    transport = TorchTransport(CPU, Patience(1))
    made.append(transport)
    command = [sys.executable, "-c", PEER, transport.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        transport.connect(1, process.stdout.readline().strip())
        yield transport, process
        process.kill()


def test_vectors_on_the_device_arrive_as_one_on_the_device(pair):
    a, b = pair
    assert a.direct(1)
    assert not a.direct(2)
    slots = [torch.arange(5, dtype=torch.float32), torch.ones(5, dtype=torch.bfloat16)]
    a.send(1, Kind.EXCHANGE, b"h", [slot[1:4] for slot in slots], expected=18)
    payload = b.receive(10).payload
    assert isinstance(payload, torch.Tensor)
    assert payload[:12].view(torch.float32).tolist() == [1, 2, 3]
    assert payload[12:].view(torch.bfloat16).tolist() == [1, 1, 1]
    assert a.ledger.counts == {Channel(1, Kind.EXCHANGE, "gloo"): Count(18, 1, 1, 18)}


def test_payloads_larger_than_a_piece_arrive_whole(pair, monkeypatch):
    monkeypatch.setattr("washp2p.transports.pair.PIECE", 1000)
    a, b = pair
    values = torch.randn(1500)
    a.send(1, Kind.EXCHANGE, b"h", [values])
    assert b.receive(10).payload.view(torch.float32).equal(values)
    a.send(1, Kind.EXCHANGE, b"h", [memoryview(values.numpy()).cast("B")])
    assert bytes(b.receive(10).payload) == values.numpy().tobytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_peer_that_is_gone_or_hangs_holds_nobody_up(other, made, how):
    """Not who sends to it, not those whom it sends to, not the closing of a transport."""
    transport, process = other
    made.append(TorchTransport(CPU, Patience(1)))
    transport.connect(2, made[-1].endpoint)
    transport.send(1, Kind.EXCHANGE, b"h", [torch.zeros(10)])
    assert process.stdout.readline() == "40\n"
    process.send_signal(how)
    began = time.monotonic()
    while not transport.broken(1):
        transport.send(1, Kind.EXCHANGE, b"h", [torch.zeros(1_000_000)])
        assert time.monotonic() - began < 10
    transport.send(2, Kind.EXCHANGE, b"alive")
    assert bytes(made[-1].receive(10).header) == b"alive"
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 5
    if how == signal.SIGKILL:
        assert process.wait() == -how


def test_a_peer_that_hangs_costs_other_links_nothing(other, made):
    transport, process = other
    made.append(TorchTransport(CPU, Patience(1)))
    healthy = made[-1]
    transport.connect(2, healthy.endpoint)
    while transport.broken(1) or transport.broken(2):
        pass
    process.send_signal(signal.SIGSTOP)
    sent = 0
    while not transport.broken(1):
        transport.send(1, Kind.EXCHANGE, b"h", [torch.zeros(1_000_000)])
        transport.send(2, Kind.EXCHANGE, b"h", [torch.zeros(10)])
        sent += 1
        assert not transport.broken(2)
        time.sleep(0.01)  # as a member's rounds would follow each other
    for _ in range(sent):
        assert healthy.receive(10) is not None
    assert not transport.broken(2)


def test_a_link_that_fails_in_an_unforeseen_way_is_made_anew(pair, monkeypatch):
    a, b = pair
    a.send(1, Kind.EXCHANGE, b"first")
    assert b.receive(10) is not None
    send = Pair.send

    def fail(self, tensor):
        monkeypatch.setattr(Pair, "send", send)
        raise TypeError("what was that")

    monkeypatch.setattr(Pair, "send", fail)
    a.send(1, Kind.EXCHANGE, b"lost")
    while not {0, 1} & {*a.mended(), *(1 - peer for peer in b.mended())}:
        pass
    while a.broken(1):
        pass
    a.send(1, Kind.EXCHANGE, b"after")
    assert bytes(b.receive(10).header) == b"after"


CROWDED = """
import resource, os, sys
from washp2p.protocol.patience import Patience
from washp2p.transports.torch_p2p import TorchTransport
transport = TorchTransport("torch://127.0.0.1:*/cpu", Patience(1))
limit = max(map(int, os.listdir("/proc/self/fd"))) + 6
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(transport.endpoint, flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, (limit + 50, limit + 50))
print(bytes(transport.receive(30).header).decode(), flush=True)
transport.close()
"""


def test_a_crowd_at_the_door_keeps_nobody_out_for_ever(made):
    """Not even if no file can be opened for some time."""
    made.append(TorchTransport(CPU, Patience(1)))
    with subprocess.Popen(
        [sys.executable, "-c", CROWDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        endpoint = process.stdout.readline().strip()
        port = int(re.search(r":(\d+)/", endpoint)[1])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        made[0].connect(1, endpoint)
        for stranger in crowd:
            stranger.close()
        print(file=process.stdin, flush=True)
        made[0].send(1, Kind.EXCHANGE, b"in at last")
        assert process.stdout.readline() == "in at last\n"


def test_a_peer_that_hung_is_reached_again(other):
    transport, process = other
    while transport.broken(1):
        pass
    process.send_signal(signal.SIGSTOP)
    while not transport.broken(1):
        transport.send(1, Kind.EXCHANGE, b"h", [torch.zeros(1000)])
    process.send_signal(signal.SIGCONT)
    while transport.mended() != [1]:
        pass
    transport.send(1, Kind.EXCHANGE, b"h", [torch.zeros(7)])
    while process.stdout.readline() != "28\n":
        pass


def test_who_sends_too_much_at_once_is_hung_up_on(made):
    made += [TorchTransport(CPU, Patience(1), largest=1000), TorchTransport(CPU, Patience(1))]
    receiver, sender = made
    sender.connect(0, receiver.endpoint)
    sender.send(0, Kind.EXCHANGE, b"h", [memoryview(bytes(1000))])
    assert receiver.receive(10) is not None
    sender.send(0, Kind.EXCHANGE, b"h", [memoryview(bytes(1001))])
    while sender.mended() != [0]:
        pass
    sender.send(0, Kind.EXCHANGE, b"again")
    assert bytes(receiver.receive(10).header) == b"again"


def test_who_leaves_too_much_unread_is_hung_up_on(made, monkeypatch):
    monkeypatch.setattr("washp2p.transports.backlog.MESSAGES", 10)
    made += [TorchTransport(CPU, Patience(1)), TorchTransport(CPU, Patience(1))]
    receiver, sender = made
    sender.connect(0, receiver.endpoint)
    while sender.mended() != [0]:
        sender.send(0, Kind.EXCHANGE, b"h")
    for _ in range(10):
        assert receiver.receive(10) is not None


def test_strangers_at_the_door_do_no_harm(made):
    made += [TorchTransport(CPU, Patience(1)), TorchTransport(CPU, Patience(1))]
    port = int(re.search(r":(\d+)/", made[0].endpoint)[1])
    for words in (b"", b"1 x\n", b"nonsense\n", b"99999999 1\n", b"\xff\n", b"x" * 100):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    made[1].connect(0, made[0].endpoint)
    made[1].send(0, Kind.EXCHANGE, b"h")
    assert bytes(made[0].receive(10).header) == b"h"


def test_all_that_listens_is_on_loopback(made):
    def listening():
        found = set()
        for family in ("tcp", "tcp6"):
            rows = Path(f"/proc/self/net/{family}").read_text().splitlines()[1:]
            found |= {row.split()[1] for row in rows if row.split()[3] == "0A"}
        return found

    before = listening()
    made += [TorchTransport(CPU), TorchTransport(CPU)]
    made[0].connect(1, made[1].endpoint)
    made[0].send(1, Kind.EXCHANGE, b"h")
    assert made[1].receive(10) is not None
    new = listening() - before
    assert len(new) >= 4
    assert {address.partition(":")[0] for address in new} == {"0100007F"}


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UsageError, match="cannot encrypt"):
        TorchTransport(CPU, credentials=Credentials(KeyPair.fresh(), lambda _: None))
    with pytest.raises(UsageError, match="not an address"):
        TorchTransport("torch://0.0.0.0:*/cpu")
    with pytest.raises(UsageError, match="expected cpu, cuda:0"):
        TorchTransport("torch://127.0.0.1:*/abacus")


def test_near_and_wide_are_one_transport(nearest):
    a, b, c = nearest(), nearest(), nearest()
    near, wide = b.near[0], c.endpoint
    assert near.startswith("torch://")
    a.connect(1, near)
    a.connect(2, wide)
    assert (a.direct(1), a.direct(2)) == (True, False)
    for peer, receiver in ((1, b), (2, c)):
        a.send(peer, Kind.EXCHANGE, b"%d" % peer, [memoryview(b"values")])
        assert bytes(receiver.receive(10).header) == b"%d" % peer
        while a.broken(peer):
            a.mended()
    assert a.ledger.counts == {
        Channel(1, Kind.EXCHANGE, "gloo"): Count(6, 1, 1),
        Channel(2, Kind.EXCHANGE, "tcp"): Count(6, 1, 1),
    }
    a.interrupt()
    assert a.receive(None) is None


def test_who_is_not_reached_by_torch_is_by_zeromq(nearest):
    a, b = nearest(), nearest()
    a.connect(1, "torch://127.0.0.1:9/cpu", otherwise=[b.endpoint])
    while a.direct(1):
        assert a.broken(1)
        mended = a.mended()
    assert mended == [1]
    a.send(1, Kind.EXCHANGE, b"picked before", [torch.zeros(3)])  # and lost
    a.send(1, Kind.EXCHANGE, b"h")
    assert bytes(b.receive(10).header) == b"h"
    assert [link.wire for link in a.ledger.counts] == ["tcp"]
