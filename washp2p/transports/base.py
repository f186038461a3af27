"""What every transport must do; `tests/process/transports/test_conformance.py` checks it.

A transport moves whole messages between members and counts what it sends. It knows nothing of
plans, strategies or models: a message is a header and a payload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias

from washp2p.protocol.ledger import Channel, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.roster import MemberId
    from washp2p.sockets.keys import KeyPair

Buffer = memoryview
Buffers: TypeAlias = "Sequence[Buffer] | Sequence[torch.Tensor]"
"""A payload's parts: host memory, or vectors on the sender's device."""
Payload: TypeAlias = "memoryview | torch.Tensor"
"""A payload that has arrived: host memory, or a vector (uint8) on the receiver's device."""


@dataclass(frozen=True)
class Credentials:
    """What encrypted connections need: a member's own key pair, and whom the member lets in.

    The callback `member_of` takes a public key and returns the member that has it, None if there is
    no such member now. Any thread may call it.
    """

    own: KeyPair
    member_of: Callable[[bytes], MemberId | None]


@dataclass(frozen=True, slots=True)
class Message:
    """One received message. Its memory belongs to the receiver.

    `sender` is the member that sent it; None if the connection cannot prove it.
    """

    header: memoryview
    payload: Payload
    sender: MemberId | None = None


class Transport(ABC):
    """Point-to-point messages among members.

    Messages from one member to another arrive whole, once and in order. Any thread may call `send`
    and `interrupt`; all other methods belong to one thread.
    """

    endpoint: str
    """The address at which peers reach this member."""

    near: tuple[str, ...] = ()
    """More addresses of this member, for peers at the same place, the nearest first."""

    device: str = ""
    """The name of the device from which payloads may be sent, as peers at this place know it.

    Empty if there is no such device.
    """

    ledger: Ledger
    """Counts every message that `send` queues."""

    @abstractmethod
    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        """Make `peer` reachable by `send`. Does not block, nor wait for the peer to exist.

        `key` is the peer's public key, if connections are encrypted. `otherwise` has its other
        addresses; each is tried when the connection has not come up for one patience. Raises
        UsageError if `endpoint` is not an address of this transport.
        """

    @abstractmethod
    def disconnect(self, peer: MemberId) -> None:
        """Drop the connection to `peer`. What is queued for it, or sent to it later, is lost.

        Harmless if it is not connected.
        """

    @abstractmethod
    def cut(self, peer: MemberId, key: bytes) -> None:
        """Close all connections with `peer` and its `key`, in both directions, for good.

        Messages of the peer that have arrived may be received after that, or lost.
        """

    @abstractmethod
    def broken(self, peer: MemberId) -> bool:
        """Whether the link to `peer` was down at the last call of `mended`. Does not block."""

    @abstractmethod
    def mended(self) -> list[MemberId]:
        """Peers whose connections were broken and work again. Each is returned once. Does not
        block.
        """

    def direct(self, peer: MemberId) -> bool:
        """Whether payloads for `peer` may be tensors on this member's device."""
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
        """Queue one message for `peer`; its payload is `buffers`, end to end.

        The message is lost if the connection is broken or was never made, or if the peer has left
        too many messages unread. `header` has at most 255 bytes. `expected` is the number of bytes
        of payload that the plan foresaw, for the ledger. Does not block. Host memory may be reused
        on return; tensors belong to the transport from now on.
        """

    @abstractmethod
    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message from any peer. Waits at most `timeout` seconds (None: for ever).

        Returns None when the time is up or `interrupt` was called.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Make the present `receive`, or the next one, return None early.

        Only one thread may call it at a time.
        """

    @abstractmethod
    def close(self, linger: float = 0.0) -> None:
        """Stop receiving, give queued messages at most `linger` seconds to leave, and free all.

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
                self.ledger.sent(Channel(peer, kind, wire), len(header), payload, expected=expected)

    @abstractmethod
    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        """Queue a message as `send` says. Calls are serialised by `send`.

        Returns the name of the wire and the payload's bytes; None if there is no connection.
        """
