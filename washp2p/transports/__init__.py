"""Transports: how messages move between members. One module each; `listen` picks by scheme.

May import errors, rounds and the ledger; never plans or strategies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.transports.base import Buffer, Buffers, Credentials, Message, Payload, Transport
from washp2p.transports.memory import MemoryTransport
from washp2p.transports.nearest import NearestTransport
from washp2p.transports.torch_p2p import TorchTransport
from washp2p.transports.zeromq import ZeromqTransport

if TYPE_CHECKING:
    from washp2p.protocol.patience import Patience

__all__ = [
    "SCHEMES",
    "Buffer",
    "Buffers",
    "Credentials",
    "MemoryTransport",
    "Message",
    "NearestTransport",
    "Payload",
    "TorchTransport",
    "Transport",
    "ZeromqTransport",
    "listen",
]

SCHEMES: dict[str, type[MemoryTransport | TorchTransport | ZeromqTransport]] = {
    "tcp": ZeromqTransport,
    "ipc": ZeromqTransport,
    "torch": TorchTransport,
    "memory": MemoryTransport,
}


def listen(
    address: str,
    patience: Patience | None = None,
    credentials: Credentials | None = None,
    *,
    near: str = "",
    largest: int = -1,
) -> Transport:
    """A transport that listens at `address` and counts links as broken after some `patience`.

    It listens at `near`, too, if that is given, where its kind can listen at two addresses.
    Its links are encrypted, and open to its peers only, if there are `credentials`. No message that
    it takes has more than `largest` bytes, header included (-1: of any size). Raises UsageError for
    an unknown scheme or address.
    """
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(
            f"{address!r} has no known transport; expected one of "
            + ", ".join(f"{known}://" for known in SCHEMES)
        )
    return SCHEMES[scheme](address, patience, credentials, near, largest)
