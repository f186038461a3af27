"""`tcp://` and `ipc://` by ZeroMQ: a bound PULL socket, and one PUSH socket to each peer.

Links are one-way: replies go back over the replier's own PUSH socket. ZeroMQ's I/O thread does the
sending and receiving, so a message moves on while the caller computes.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from washp2p.errors import UsageError
from washp2p.patience import Patience
from washp2p.transports.base import Buffer, Message, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.rounds import MemberId

_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
_INTERRUPT = "inproc://interrupt"
_LENGTHS = [bytes([length]) for length in range(256)]


class ZeromqTransport(Transport):
    """Messages over ZeroMQ, one ZeroMQ frame each: the header's length in a byte, header, payload.

    One frame costs half of what a multipart message does, on the wire and in calls.
    """

    def __init__(self, bind: str, patience: Patience | None = None) -> None:
        """Listen at `bind`, where `*` as port takes a free one. Raises UsageError if it cannot.

        `patience` says when a silent link counts as broken.
        """
        if bind.startswith("ipc://") and _in_use(bind.removeprefix("ipc://")):
            raise UsageError(f"cannot listen at {bind}: it is in use; choose another path")
        super().__init__()
        self._context = zmq.Context()
        self._context.set(zmq.BLOCKY, 0)  # no socket lingers unless it is told to
        self._pull = self._context.socket(zmq.PULL)
        self._pull.set(zmq.RCVHWM, 0)
        self._timeout: float | None = None
        self._patience = patience or Patience()
        self._patience.watch(self._pull)
        self._monitors: dict[MemberId, zmq.Socket[bytes]] = {}
        self._up: set[MemberId] = set()
        self._broken: set[MemberId] = set()
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
        self._patience.watch(push)
        monitor = push.get_monitor_socket(_EVENTS)
        try:
            push.connect(endpoint)
        except zmq.ZMQError as error:
            _let_go(push, monitor)
            raise UsageError(
                f"member {peer} is said to listen at {endpoint!r}: {error.strerror}; start it with "
                "an --advertise address of the form tcp://HOST:PORT"
            ) from None
        self.disconnect(peer)
        self._push[peer], self._monitors[peer] = push, monitor

    def disconnect(self, peer: MemberId) -> None:
        """See Transport."""
        with self._sending:
            push, monitor = self._push.pop(peer, None), self._monitors.pop(peer, None)
            self._broken.discard(peer)
            self._up.discard(peer)
            if push is not None and monitor is not None:
                _let_go(push, monitor)

    def broken(self, peer: MemberId) -> bool:
        """See Transport."""
        return peer not in self._up

    def mended(self) -> list[MemberId]:
        """See Transport."""
        mended = []
        for peer, monitor in self._monitors.items():
            while int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
                if recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED:
                    self._broken.add(peer)
                    self._up.discard(peer)
                    continue
                self._up.add(peer)
                if peer in self._broken:
                    self._broken.remove(peer)
                    mended.append(peer)
        return mended

    def _put(self, peer: MemberId, header: bytes, buffers: Sequence[Buffer]) -> int | None:
        """See Transport."""
        push = self._push.get(peer)
        if push is None or peer in self._broken:
            return None
        message = b"".join((_LENGTHS[len(header)], header, *buffers))
        push.send(message)
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
            if timeout != self._timeout:
                self._pull.set(zmq.RCVTIMEO, -1 if timeout is None else round(timeout * 1000))
                self._timeout = timeout
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
        for peer, push in self._push.items():
            _let_go(push, self._monitors[peer], linger)
        self._interrupt.close(linger=0)
        self._pull.close(linger=0)
        self._context.term()


def _let_go(push: zmq.Socket[bytes], monitor: zmq.Socket[bytes], linger: float = 0.0) -> None:
    """Close a link's sockets; what is queued has `linger` seconds to leave."""
    push.disable_monitor()
    monitor.close(linger=0)
    push.close(linger=round(linger * 1000))


def _in_use(path: str) -> bool:
    """Whether somebody listens at a Unix socket; ZeroMQ itself would take it over silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
