"""Addresses: what is loopback, what is advertised, what is refused."""

from __future__ import annotations

import pytest

from washp2p.errors import UsageError
from washp2p.protocol.endpoints import is_loopback, require_loopback, split_tcp
from washp2p.sockets.addresses import advertised, facing


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://localhost:*", True),
        ("tcp://[::1]:5555", True),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://localhost.example.org:5555", False),
    ],
)
def test_loopback(endpoint, expected):
    assert is_loopback(endpoint) is expected
    if not expected:
        with pytest.raises(UsageError, match="--insecure"):
            require_loopback(endpoint, encrypted=False, insecure=False)
    require_loopback(endpoint, encrypted=False, insecure=True)
    require_loopback(endpoint, encrypted=True, insecure=False)


@pytest.mark.parametrize(
    "bad", ["", "5555", "host:5555", "tcp://host", "tcp://h:99999", "udp://h:1"]
)
def test_what_is_not_an_address(bad):
    with pytest.raises(UsageError, match="expected tcp://HOST:PORT"):
        split_tcp(bad)


def test_advertised_address():
    coordinator = "tcp://127.0.0.1:5555"
    assert advertised("tcp://127.0.0.1:700", None, coordinator) == "tcp://127.0.0.1:700"
    assert advertised("tcp://0.0.0.0:700", None, coordinator) == "tcp://127.0.0.1:700"
    assert advertised("tcp://0.0.0.0:700", "tcp://gate", coordinator) == "tcp://gate:700"
    assert advertised("tcp://0.0.0.0:700", "tcp://gate:9", coordinator) == "tcp://gate:9"
    assert facing(coordinator) == "tcp://127.0.0.1:*"
