"""Heartbeats: ZeroMQ closes a connection whose other end is gone or hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from zmq import Socket

    from washp2p.protocol.patience import Patience


def close_dead_links(socket: Socket[Any], patience: Patience) -> None:
    """Let ZeroMQ close connections of a socket, at both ends, when one end is gone or hangs.

    Call this before anything else. It removes the limit on queued incoming messages, so the caller
    has to bound them. With a limit, ZeroMQ stops reading from a connection when its queue is full.
    If it then finds a ping in what is left of a closed connection, it aborts the process.
    """
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.HEARTBEAT_IVL, max(1, round(1000 * patience.ping)))
    socket.set(zmq.HEARTBEAT_TIMEOUT, max(1, round(1000 * patience.dead)))
    socket.set(zmq.HEARTBEAT_TTL, max(100, round(1000 * patience.dead)))
    socket.set(zmq.HANDSHAKE_IVL, max(1, round(1000 * patience.dead)))
    socket.set(zmq.CONNECT_TIMEOUT, max(1, round(1000 * patience.dead)))
    socket.set(zmq.RECONNECT_IVL_MAX, max(100, round(1000 * patience.ping)))
