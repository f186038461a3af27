"""`tcp://` and `ipc://` by ZeroMQ: one bound DEALER socket, and another one to each peer.

Connections are one-way: a reply uses the replier's own connection. ZeroMQ's I/O thread sends,
receives and encrypts, so messages move while the caller computes. Sockets have no receive limit: if
one stopped reading at a limit, a peer that pings and then leaves would make ZeroMQ abort the
process. Instead, while the caller computes, a thread looks at arrived messages ten times a second,
and closes a connection if too many of its messages wait.
"""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from washp2p.errors import UsageError
from washp2p.protocol.patience import Patience
from washp2p.sockets.curve_auth import Authenticator, guard, hang_up, present
from washp2p.sockets.heartbeats import close_dead_links
from washp2p.transports.backlog import Backlog
from washp2p.transports.base import Message, Wire
from washp2p.transports.zeromq_link import ZeromqLink, connection_of, in_use, key_of, let_go

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffers, Credentials

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED
_INTERRUPT = "inproc://interrupt"
_NOTHING = memoryview(b"")
_LENGTHS = [bytes([length]) for length in range(256)]

QUEUED = 10_000
"""Messages kept for a peer that does not take them; more are lost."""
LOOK_SECONDS = 0.1
"""The time between two looks of the thread at arrived messages."""
AT_A_LOOK = 10_000
"""The most messages that one look moves into the backlog. Meanwhile the caller cannot receive."""


class ZeromqTransport(Wire):
    """Messages over ZeroMQ, one frame each: the header's length in a byte, the header, the
    payload.

    One frame costs half as much as a multipart message, both on the wire and in calls.
    """

    def __init__(
        self,
        bind: str,
        patience: Patience | None = None,
        credentials: Credentials | None = None,
        near: str = "",
        largest: int = -1,
    ) -> None:
        """Listen at `bind`, where port `*` means any free one, and at `near`, if given and
        possible.

        `patience` says when a silent connection counts as broken. Messages of more than `largest`
        bytes are refused (-1: no limit). Raises UsageError if it cannot listen.
        """
        if bind.startswith("ipc://") and "@" not in bind and in_use(bind.removeprefix("ipc://")):
            raise UsageError(f"cannot listen at {bind}: it is in use; choose another path")
        super().__init__()
        self._credentials = credentials
        self._patience = patience or Patience()
        self._timeout: float | None = None
        self._links: dict[MemberId, ZeromqLink] = {}
        self._cut_off: set[bytes] = set()
        self._context = zmq.Context()
        self._context.set(zmq.BLOCKY, 0)  # no socket lingers unless it is told to
        self._gate: Authenticator | None = None
        self._backlog = Backlog(largest)
        self._receiving = Lock()
        self._closing = Event()
        self._looking = Thread(target=self._look, name="washp2p intake", daemon=True)
        self._incoming = self._context.socket(zmq.DEALER)
        if credentials is not None:
            self._gate = Authenticator(self._context, self._admits, self._patience)
            guard(self._incoming, credentials.own)
        close_dead_links(self._incoming, self._patience)
        self._incoming.set(zmq.MAXMSGSIZE, largest)
        self._incoming.set(zmq.IPV6, "[" in bind)
        self._incoming.bind(_INTERRUPT)
        self._interrupt = self._context.socket(zmq.DEALER)
        self._interrupt.set(zmq.SNDHWM, 0)
        self._interrupt.connect(_INTERRUPT)
        try:
            self._incoming.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"cannot listen at {bind}: {error.strerror}; choose another address or port"
            ) from None
        self.endpoint = self._incoming.get_string(zmq.LAST_ENDPOINT)
        if near:
            with suppress(zmq.ZMQError):  # some sandboxes forbid it
                self._incoming.bind(near)
                self.near = (near,)
        self._looking.start()

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        try:
            link = self._link(endpoint, key)
            link.otherwise = list(otherwise)
        except zmq.ZMQError as error:
            raise UsageError(
                f"member {peer} is said to listen at {endpoint!r}: {error.strerror}; start it with "
                "an --advertise address of the form tcp://HOST:PORT"
            ) from None
        self.disconnect(peer)
        self._links[peer] = link

    def disconnect(self, peer: MemberId) -> None:
        with self._sending:
            link = self._links.pop(peer, None)
            if link is not None:
                let_go(link)

    def cut(self, peer: MemberId, key: bytes) -> None:
        self.disconnect(peer)
        self._cut_off.add(key)
        with self._receiving:
            self._backlog.forget(peer)

    def broken(self, peer: MemberId) -> bool:
        link = self._links.get(peer)
        return link is None or not link.up

    def mended(self) -> list[MemberId]:
        mended = []
        now = time.monotonic()
        for peer, link in self._links.items():
            while int(link.monitor.get(zmq.EVENTS)) & zmq.POLLIN:
                event = recv_monitor_message(link.monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    link.up = True
                    if link.broken:
                        link.broken = False
                        mended.append(peer)
                    continue
                link.hopeless |= bool(event & _FAILED)
                if link.up:
                    link.up, link.broken, link.since = False, True, now
            if int(link.socket.get(zmq.EVENTS)) & zmq.POLLIN:
                link.hopeless = True  # nothing is to come back: away with it, unread
            late = now - link.since > self._patience.seconds
            if late and link.otherwise and not link.up:
                link.endpoint = link.otherwise.pop(0)
                self._replace(peer, link)
            elif link.hopeless or (late and link.broken):
                self._replace(peer, link)
        return mended

    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        link = self._links.get(peer)
        if link is None or link.broken:
            return None
        message = b"".join((_LENGTHS[len(header)], header, *buffers))
        try:
            link.socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return None
        return link.endpoint.partition("://")[0], len(message) - len(header) - 1

    def receive(self, timeout: float | None = None) -> Message | None:
        with self._receiving:
            while True:
                if self._backlog:
                    message = self._backlog.pop()
                elif timeout == 0 and not self._readable():
                    return None  # cheaper than an exception
                else:
                    try:
                        message = self._take(timeout)
                    except zmq.Again:
                        return None
                if message is not None or timeout != 0:  # else an interrupt that came too late
                    return message

    def interrupt(self) -> None:
        self._interrupt.send(b"")

    def close(self, linger: float = 0.0) -> None:
        if self._context.closed:
            return
        self._closing.set()
        if self._looking.is_alive():
            self._looking.join()
        for link in self._links.values():
            let_go(link, linger)
        self._interrupt.close(linger=0)
        self._incoming.close(linger=0)
        self._context.term()
        if self._gate is not None:
            self._gate.join()

    def _link(self, endpoint: str, key: bytes) -> ZeromqLink:
        """Open a connection to a peer. Raises ZMQError."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.set(zmq.SNDHWM, QUEUED)
        dealer.set(zmq.MAXMSGSIZE, 1024)  # handshakes; nothing else comes back
        dealer.set(zmq.IPV6, "[" in endpoint)
        close_dead_links(dealer, self._patience)
        monitor = dealer.get_monitor_socket(_EVENTS)
        link = ZeromqLink(endpoint, [], key, dealer, monitor, time.monotonic())
        try:
            if self._credentials is not None:
                present(dealer, self._credentials.own, key)
            dealer.connect(endpoint)
        except zmq.ZMQError:
            let_go(link)
            raise
        return link

    def _replace(self, peer: MemberId, link: ZeromqLink) -> None:
        """Open a connection again: after some failed handshakes ZeroMQ stops trying."""
        link.up, link.broken, link.hopeless, link.since = False, True, False, time.monotonic()
        with suppress(zmq.ZMQError), self._sending:  # if it cannot be, the next time
            again = self._link(link.endpoint, link.key)
            let_go(link)
            link.socket, link.monitor = again.socket, again.monitor

    def _look(self) -> None:
        """Move arrived messages into the backlog while the caller does not receive."""
        while not self._closing.wait(LOOK_SECONDS):
            if self._receiving.acquire(blocking=False):
                refused: set[int] = set()
                try:
                    for _ in range(AT_A_LOOK):
                        if not self._readable():
                            break
                        self._put_by(refused)
                except zmq.Again:
                    pass  # what was there was of a connection that has ended
                finally:
                    self._receiving.release()

    def _put_by(self, refused: set[int]) -> None:
        """Move the next message into the backlog. Raises zmq.Again if there is none.

        If too much of its origin waits, drop the message. Unless its connection is in `refused`,
        close the connection and add it there.
        """
        frame = self._incoming.recv(zmq.NOBLOCK, copy=False)
        found = self._read(frame)
        if found is None:
            return
        message, sender = found
        connection = connection_of(frame)
        kept = self._backlog.put(connection if sender is None else sender, message)
        if not kept and message is not None and connection not in refused:
            refused.add(connection)  # the rest of what it sent may be read when it has ended
            hang_up(frame)

    def _readable(self) -> bool:
        return bool(int(self._incoming.get(zmq.EVENTS)) & zmq.POLLIN)

    def _take(self, timeout: float | None) -> Message | None:
        """The next message of an admitted sender; None for an interrupt. Raises Again."""
        flags = zmq.NOBLOCK if timeout == 0 else 0
        if timeout not in {0, self._timeout}:
            self._incoming.set(zmq.RCVTIMEO, -1 if timeout is None else round(timeout * 1000))
            self._timeout = timeout
        if self._credentials is None:
            return self._message(memoryview(self._incoming.recv(flags)), None)
        while True:
            found = self._read(self._incoming.recv(flags, copy=False))
            if found is not None:
                return found[0]

    def _read(self, frame: zmq.Frame) -> tuple[Message | None, MemberId | None] | None:
        """A frame's message and its proven sender. Returns None if the sender is not admitted.

        For an interrupt, both message and sender are None.
        """
        if self._credentials is None:
            return self._message(frame.buffer, None), None
        key = key_of(frame)
        if key is None:
            return None, None
        sender = None if key in self._cut_off else self._credentials.member_of(key)
        message = self._message(frame.buffer, sender)
        if sender is None:
            hang_up(frame)
            return None
        return message or Message(_NOTHING, _NOTHING, sender), sender

    def _message(self, data: memoryview, sender: MemberId | None) -> Message | None:
        """The message in a ZeroMQ frame; None if the frame is empty or has further parts."""
        several = False
        while self._incoming.get(zmq.RCVMORE):
            self._incoming.recv()
            several = True
        if several or not len(data):
            return None
        end = 1 + data[0]
        return Message(data[1:end], data[end:], sender)

    def _admits(self, key: bytes, _: str) -> bool | None:
        """Whether a key may connect; None: not yet. Called on the authenticator's thread."""
        assert self._credentials is not None
        if key in self._cut_off:
            return False
        return True if self._credentials.member_of(key) is not None else None
