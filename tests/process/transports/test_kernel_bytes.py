"""Our own count of bytes, against what the kernel's TCP says it sent."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from washp2p.protocol.ledger import Kind
from washp2p.sockets.keys import KeyPair
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen

BYTES_SENT = 200  # offset of tcpi_bytes_sent in struct tcp_info; tcpi_bytes_retrans follows


def sent_by_kernel(port):
    """Payload bytes that this process's connections to `port` have sent, each counted once."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.family != socket.AF_INET or connection.getpeername()[1] != port:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue
        sent, again = struct.unpack_from("<QQ", info, BYTES_SENT)
        total += sent - again
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc and TCP_INFO")
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(("size", "parts", "tolerance"), [(100_000, 1, 0.05), (2_000, 2, 0.05)])
def test_ledger_agrees_with_the_kernel(size, parts, tolerance, encrypted):
    pairs = [KeyPair.fresh() for _ in range(2)]
    sender, receiver = (
        listen(
            "tcp://127.0.0.1:*",
            credentials=Credentials(pair, lambda key: 1) if encrypted else None,
        )
        for pair in pairs
    )
    sender.connect(1, receiver.endpoint, pairs[1].public if encrypted else b"")
    messages = 200
    for _ in range(messages):
        sender.send(1, Kind.EXCHANGE, b"h" * 28, [memoryview(b"x" * size)] * parts)
    for _ in range(messages):
        assert receiver.receive(10) is not None
    port = int(receiver.endpoint.rpartition(":")[2])
    wire = sent_by_kernel(port)
    count = sender.ledger.total(Kind.EXCHANGE)
    assert (count.payload, count.header) == (messages * parts * size, messages * 28)
    zmtp = messages * (9 + 1)  # before a frame of more than 255 bytes, and the header's length
    zmtp += messages * 33 * encrypted  # CURVE: 8 of name, 8 of nonce, 16 of authentication, a flag
    counted = count.payload + count.header + zmtp
    sender.close()
    receiver.close()
    assert counted <= wire <= (1 + tolerance) * counted
    assert wire - counted < 1000  # ZMTP's handshake
