"""`memory://NAME`: members in one process, for tests of the layers above."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.transports.base import Message, Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffers, Credentials

_Inbox = SimpleQueue[Message | None]


class MemoryTransport(Wire):
    """Members' queues in this process. A member finds its peers' queues by name."""

    _inboxes: dict[str, _Inbox] = {}  # noqa: RUF012 - the "network" all members of a process share
    _lock = Lock()

    def __init__(
        self,
        endpoint: str,
        patience: Patience | None = None,
        credentials: Credentials | None = None,
        near: str = "",
        largest: int = -1,
    ) -> None:
        """Take the name `endpoint` (`memory://NAME`). Raises UsageError if it is in use."""
        self.endpoint = endpoint
        super().__init__()
        self._inbox: _Inbox = SimpleQueue()
        self._peers: dict[MemberId, str] = {}
        with self._lock:
            if endpoint in self._inboxes:
                raise UsageError(f"{endpoint} is in use; choose another name")
            self._inboxes[endpoint] = self._inbox

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        if not endpoint.startswith("memory://"):
            raise UsageError(f"{endpoint!r} is not an address of this transport: memory://NAME")
        self._peers[peer] = endpoint

    def disconnect(self, peer: MemberId) -> None:
        self._peers.pop(peer, None)

    def cut(self, peer: MemberId, key: bytes) -> None:
        """Stop sending to the peer. It may still send: peers in this process are trusted."""
        self.disconnect(peer)

    def broken(self, peer: MemberId) -> bool:
        """Whether the other end is gone."""
        return self._peers.get(peer) not in self._inboxes

    def mended(self) -> list[MemberId]:
        """An empty list, because connections do not break here."""
        return []

    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        """Deliver a message. If the peer is not there, the message is lost, as on a network."""
        payload = b"".join(buffers)  # type: ignore[arg-type]
        if peer not in self._peers:
            return None
        inbox = self._inboxes.get(self._peers[peer])
        if inbox is not None:
            inbox.put(Message(memoryview(header), memoryview(payload)))
        return "memory", len(payload)

    def receive(self, timeout: float | None = None) -> Message | None:
        try:
            message = self._inbox.get(timeout != 0, timeout or None)
            while message is None and timeout == 0:  # an interrupt that came too late
                message = self._inbox.get_nowait()
        except Empty:
            return None
        return message

    def interrupt(self) -> None:
        self._inbox.put(None)

    def close(self, linger: float = 0.0) -> None:
        """Close at once: a message is delivered when it is sent."""
        with self._lock:
            if self._inboxes.get(self.endpoint) is self._inbox:
                del self._inboxes[self.endpoint]
