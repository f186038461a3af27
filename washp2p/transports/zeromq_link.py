"""One ZeroMQ connection to a peer, and what a frame tells of the connection it came by."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import zmq


@dataclass
class ZeromqLink:
    """A connection to a peer. `since` is when it was made, or broke.

    `otherwise` has addresses to try if it does not come up.
    """

    endpoint: str
    otherwise: list[str]
    key: bytes
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    since: float
    up: bool = False
    broken: bool = False
    hopeless: bool = False


def key_of(frame: zmq.Frame) -> bytes | None:
    """The public key that a frame's sender has proved to hold; None for an interrupt."""
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except zmq.ZMQError:
        return None


def connection_of(frame: zmq.Frame) -> int:
    """The number of the connection by which a frame has come; -1 for an interrupt."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def let_go(link: ZeromqLink, linger: float = 0.0) -> None:
    """Close a connection's sockets. Queued messages have `linger` seconds to leave."""
    link.socket.disable_monitor()
    link.monitor.close(linger=0)
    link.socket.close(linger=round(linger * 1000))


def in_use(path: str) -> bool:
    """Whether a process listens at a Unix socket. ZeroMQ itself would take it over silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
