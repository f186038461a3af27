"""How a closed or silent link is noticed, and how long a last word may take: for both planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from zmq import Socket

HEARTBEAT_MS = 1000
DEAD_MS = 5000
FAREWELL_MS = 1000


def watch(socket: Socket[Any]) -> None:
    """Have ZeroMQ close links of `socket` whose other end is gone or hangs. Call it first."""
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, DEAD_MS)
