"""`tcp://` and `ipc://` by ZeroMQ: a bound PULL socket, and one PUSH socket to each peer.

Links are one-way: replies go back over the replier's own PUSH socket. ZeroMQ's I/O thread does the
sending and receiving, so a message moves on while the caller computes.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import zmq

from washp2p.errors import UsageError
from washp2p.liveness import watch
from washp2p.transports.base import Buffer, Message, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.rounds import MemberId

_INTERRUPT = "inproc://interrupt"
_LENGTHS = [bytes([length]) for length in range(256)]


class ZeromqTransport(Transport):
    """Messages over ZeroMQ, one ZeroMQ frame each: the header's length in a byte, header, payload.

    One frame costs half of what a multipart message does, on the wire and in calls.
    """

    def __init__(self, bind: str) -> None:
        """Listen at `bind`, where `*` as port takes a free one. Raises UsageError if it cannot."""
        if bind.startswith("ipc://") and _in_use(bind.removeprefix("ipc://")):
            raise UsageError(f"cannot listen at {bind}: it is in use; choose another path")
        super().__init__()
        self._context = zmq.Context()
        self._context.set(zmq.BLOCKY, 0)  # no socket lingers unless it is told to
        self._pull = self._context.socket(zmq.PULL)
        self._pull.set(zmq.RCVHWM, 0)
        self._patience: float | None = None
        self._pull.set(zmq.IPV6, "[" in bind)
        self._pull.bind(_INTERRUPT)
        self._interrupt = self._context.socket(zmq.PUSH)
        self._interrupt.set(zmq.SNDHWM, 0)
        self._interrupt.connect(_INTERRUPT)
        self._push: dict[MemberId, zmq.Socket[bytes]] = {}
        try:
            self._pull.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"cannot listen at {bind}: {error.strerror}; choose another address or port"
            ) from None
        self.endpoint = self._pull.get_string(zmq.LAST_ENDPOINT)

    def connect(self, peer: MemberId, endpoint: str) -> None:
        """See Transport."""
        push = self._context.socket(zmq.PUSH)
        push.set(zmq.SNDHWM, 0)
        push.set(zmq.IPV6, "[" in endpoint)
        watch(push)
        try:
            push.connect(endpoint)
        except zmq.ZMQError as error:
            push.close(linger=0)
            raise UsageError(
                f"member {peer} is said to listen at {endpoint!r}: {error.strerror}; start it with "
                "an --advertise address of the form tcp://HOST:PORT"
            ) from None
        self._push[peer] = push

    def _put(self, peer: MemberId, header: bytes, buffers: Sequence[Buffer]) -> int:
        """See Transport."""
        message = b"".join((_LENGTHS[len(header)], header, *buffers))
        self._push[peer].send(message)
        return len(message) - len(header) - 1

    def receive(self, timeout: float | None = None) -> Message | None:
        """See Transport."""
        message = b""
        if timeout == 0:
            while not message:  # an interrupt that came too late is one
                if not int(self._pull.get(zmq.EVENTS)) & zmq.POLLIN:  # cheaper than an exception
                    return None
                message = self._pull.recv()
        else:
            if timeout != self._patience:
                self._pull.set(zmq.RCVTIMEO, -1 if timeout is None else round(timeout * 1000))
                self._patience = timeout
            try:
                message = self._pull.recv()
            except zmq.Again:
                return None
        if not message:
            return None
        view, end = memoryview(message), 1 + message[0]
        return Message(view[1:end], view[end:])

    def interrupt(self) -> None:
        """See Transport."""
        self._interrupt.send(b"")

    def close(self, linger: float = 0.0) -> None:
        """See Transport."""
        if self._context.closed:
            return
        for push in self._push.values():
            push.close(linger=round(linger * 1000))
        self._interrupt.close(linger=0)
        self._pull.close(linger=0)
        self._context.term()


def _in_use(path: str) -> bool:
    """Whether somebody listens at a Unix socket; ZeroMQ itself would take it over silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
