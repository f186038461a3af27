"""The coordinator's one socket: a ROUTER, to which all workers connect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zmq

from washp2p.errors import UsageError
from washp2p.protocol.messages.control import WORKER_LIMIT
from washp2p.protocol.patience import FAREWELL_MS
from washp2p.sockets.curve_auth import Authenticator, guard
from washp2p.sockets.heartbeats import close_dead_links

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.protocol.patience import Patience
    from washp2p.sockets.keys import KeyPair

AHEAD = 1000
"""Messages that are kept for a worker before it is given up."""


class Router:
    """Sends to workers and receives from them by identity. Sending never blocks."""

    def __init__(
        self, patience: Patience, own: KeyPair | None, admits: Callable[[bytes, str], bool | None]
    ) -> None:
        """Encrypt connections if `own` is a key pair; then `admits` decides who may connect."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        """To be polled; to be read by `receive` only."""
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        self.socket.set(zmq.ROUTER_HANDOVER, 1)
        self.socket.set(zmq.SNDHWM, AHEAD)
        self.socket.set(zmq.MAXMSGSIZE, WORKER_LIMIT)
        close_dead_links(self.socket, patience)
        self._gate: Authenticator | None = None
        if own is not None:
            self._gate = Authenticator(self._context, admits, patience)
            guard(self.socket, own)

    def listen(self, bind: str) -> str:
        """Listen at `bind`. Return the address that workers connect to. Raises UsageError."""
        try:
            self.socket.set(zmq.IPV6, "[" in bind)
            self.socket.bind(bind)
        except zmq.ZMQError as error:
            raise UsageError(
                f"cannot listen at {bind}: {error.strerror}; choose another --bind, or end what "
                "listens there"
            ) from None
        return self.socket.get_string(zmq.LAST_ENDPOINT)

    @property
    def arrived(self) -> bool:
        """Whether there is a message to `receive`."""
        return bool(int(self.socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self) -> tuple[bytes, zmq.Frame, bool]:
        """The next message: the worker's identity, the frame, and whether more frames followed.

        A valid message has one frame. Blocks until a message has `arrived`.
        """
        identity = self.socket.recv()
        frame, *more = self.socket.recv_multipart(copy=False)
        return identity, frame, bool(more)

    def send(self, identity: bytes, data: bytes) -> bool:
        """Send to a worker. Return whether it is connected and takes messages."""
        try:
            self.socket.send_multipart((identity, data), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        """Close the socket. Blocks up to a second, until messages already sent have left."""
        self.socket.close(linger=FAREWELL_MS)
        self._context.term()
        if self._gate is not None:
            self._gate.join()
