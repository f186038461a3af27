"""One ZeroMQ connection to a peer, and what a received frame tells about its connection."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import zmq


@dataclass
class ZeromqLink:
    """A connection to a peer. `since` is the time (monotonic) at which it was made or broke.

    `otherwise` has the addresses to try next if the connection does not come up. `hopeless` means
    that the socket must be replaced.
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
    """The file descriptor of the connection on which a frame came; -1 for an interrupt."""
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
    """Whether a process listens at the Unix socket `path`. ZeroMQ would take it over silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
