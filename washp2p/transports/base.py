"""The contract that every transport keeps; tests/transports/conformance checks it.

A transport moves whole messages between members and counts what it sends. It knows nothing of
plans, strategies or models: a message is a header and a payload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias

from washp2p.protocol.ledger import Ledger, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.roster import MemberId
    from washp2p.sockets.keys import KeyPair

Buffer = memoryview
Buffers: TypeAlias = "Sequence[Buffer] | Sequence[torch.Tensor]"
"""A payload's parts: host memory, or vectors on the device that a link takes them from."""
Payload: TypeAlias = "memoryview | torch.Tensor"
"""A payload that has arrived: host memory, or a vector (uint8) on the receiver's device."""


@dataclass(frozen=True)
class Credentials:
    """What encrypted links need: a member's own keys, and whom it lets in.

    `member_of` says whose a public key is, None if it is nobody's now. Any thread may call it.
    """

    own: KeyPair
    member_of: Callable[[bytes], MemberId | None]


@dataclass(frozen=True, slots=True)
class Message:
    """One received message. Its memory belongs to the receiver until it lets go of it.

    `sender` is who has sent it, None on links that cannot prove it.
    """

    header: memoryview
    payload: Payload
    sender: MemberId | None = None


class Transport(ABC):
    """Point-to-point messages among members.

    Messages from one member to another arrive whole, once and in order. `send` and `interrupt`
    may be called by any thread, all else belongs to one.
    """

    endpoint: str
    """The address at which peers reach this member."""

    near: tuple[str, ...] = ()
    """Others, for peers at the same place, the nearest first."""

    device: str = ""
    """What peers at this place know the device as from which payloads may be sent; empty: none."""

    ledger: Ledger
    """Counts every message handed to `send`."""

    @abstractmethod
    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        """Make `peer` reachable by `send`. Does not block, nor wait for the peer to exist.

        `key` is the peer's public one, where links are encrypted. `otherwise` are other addresses
        of it; each is tried once the link has not come up for one patience.

        Raises UsageError if `endpoint` is not an address of this transport.
        """

    @abstractmethod
    def disconnect(self, peer: MemberId) -> None:
        """Let go of `peer`: what is queued for it is lost, what is sent to it later, too.

        Harmless where it is not connected.
        """

    @abstractmethod
    def cut(self, peer: MemberId, key: bytes) -> None:
        """Have nothing to do any more with `peer`, in either direction, nor with its `key`.

        What has arrived of it already may still be received.
        """

    @abstractmethod
    def broken(self, peer: MemberId) -> bool:
        """Whether the link to `peer` is down, as of the last `mended`. Does not block."""

    @abstractmethod
    def mended(self) -> list[MemberId]:
        """Peers whose links were broken and hold again, each told once. Does not block."""

    def direct(self, peer: MemberId) -> bool:
        """Whether payloads for `peer` may be vectors on this member's device."""
        return False

    @abstractmethod
    def send(
        self,
        peer: MemberId,
        kind: Kind,
        header: bytes,
        buffers: Buffers = (),
        *,
        expected: int = 0,
    ) -> None:
        """Queue one message for `peer`, whose payload is `buffers` end to end.

        Where the link to it is broken, or it was never connected, the message is lost; so it is
        where a peer has left too many unread.

        `header` has at most 255 bytes; `expected` is what the plan says of the payload's, for the
        ledger. Does not block; memory of the host may be reused on return, tensors are the
        transport's from now on.
        """

    @abstractmethod
    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message from anyone, waiting at most `timeout` seconds (None: for ever).

        Returns None when the time is up or `interrupt` was called.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make a `receive` that waits now, or the next one, return None early.

        For one other thread.
        """

    @abstractmethod
    def close(self, linger: float = 0.0) -> None:
        """Stop receiving, give queued messages at most `linger` seconds to leave, free all.

        Harmless when called twice.
        """


class Wire(Transport):
    """A transport of one kind, which counts what it sends."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._sending = Lock()

    def send(
        self,
        peer: MemberId,
        kind: Kind,
        header: bytes,
        buffers: Buffers = (),
        *,
        expected: int = 0,
    ) -> None:
        with self._sending:
            sent = self._put(peer, header, buffers)
            if sent is not None:
                wire, payload = sent
                self.ledger.sent(Link(peer, kind, wire), len(header), payload, expected=expected)

    @abstractmethod
    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        """Queue a message, one at a time, as `send` says; by what it goes, its payload's bytes.

        None: there is no link.
        """
