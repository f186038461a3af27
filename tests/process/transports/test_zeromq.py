"""What is special about ZeroMQ: a process must not die of what its peers do."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from contextlib import suppress

from washp2p.protocol.ledger import Kind
from washp2p.transports import backlog
from washp2p.transports.listening import listen

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
PING = b"\x04PING\0\0"

READER = """
import sys
from washp2p.transports.listening import listen
transport = listen("tcp://127.0.0.1:*")
print(transport.endpoint, flush=True)
sys.stdin.readline()
count = 0
while transport.receive(1.0) is not None:
    count += 1
print(count, flush=True)
transport.close()
"""


def command(body):
    return b"\x04" + bytes([len(body)]) + body


def message(body):
    return b"\0" + bytes([len(body)]) + body


def read(connection, count):
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def test_a_peer_that_is_read_late_may_ping_and_go():
    """ZeroMQ aborts when it finds a ping in what a broken connection has left, had it stopped."""
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        host, port = reader.stdout.readline().strip().removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(GREETING + command(READY))
            read(connection, len(GREETING) + 2 + len(READY))
            connection.sendall(message(b"\0x") * 900)
            connection.sendall((message(b"\0x") + command(PING)) * 1100)
            connection.settimeout(0.5)
            with suppress(TimeoutError):
                while connection.recv(1 << 16):  # pongs, for as long as pings are taken in
                    pass
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        out, _ = reader.communicate("\n", timeout=30)
    assert reader.returncode == 0
    assert int(out) >= 900


def test_whoever_sends_more_than_is_to_wait_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(backlog, "BYTES", 1 << 20)
    receiver, busy, modest = (listen("tcp://127.0.0.1:*") for _ in range(3))
    for sender in (busy, modest):
        sender.connect(0, receiver.endpoint)
        sender.send(0, Kind.EXCHANGE, b"first")
    part = memoryview(bytes(100_000))
    while busy.broken(0) or modest.broken(0):
        busy.mended()
        modest.mended()
    while not busy.broken(0):
        busy.send(0, Kind.EXCHANGE, b"large", (part,))
        modest.mended()
        busy.mended()
    modest.send(0, Kind.EXCHANGE, b"last")
    words = []
    while b"last" not in words:
        words.append(bytes(receiver.receive(10).header))
    assert words.count(b"first") == 2
    assert words.count(b"large") >= 10
    assert not modest.broken(0)
    for transport in (receiver, busy, modest):
        transport.close()
