"""The headers of data-plane messages: encoding and validation. Uses no sockets.

A message is a header of at most 96 bytes, followed by raw values. The header names sender and
receiver, so a member refuses a message that was meant for another. The header does not name the
values' dtype: the layout has it for each slot. docs/protocol.md describes every byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import get_args

from washp2p.protocol.messages.records import Codec

VERSION = 5
FIRST, SECOND, MOMENTS, SURVEY = range(4)
"""Legs of a round. FIRST has the members' values, SECOND the means that members made of them.

MOMENTS has moments of features, for REPAIR. SURVEY has values that are measured, not applied.
"""
BESIDE = MOMENTS
"""From this leg on, frames hold vectors of the parameters' dtype, and no values to apply."""
FOREVER = 1 << 32
"""As `number` of an End: no average follows, the sender has ended for good."""
HEADER_LIMIT = 96
RUN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """The header of one sender's values of a round. The values follow, slot after slot.

    `waits` is the share of its time, per mille, that the sender spends waiting for peers.
    `fingerprint` differs if sender and receiver derived different plans. `leg` tells apart the
    messages of one round.
    """

    run: bytes
    sender: int
    receiver: int
    generation: int
    round: int
    slots: int
    waits: int
    fingerprint: int
    leg: int = FIRST

    def to(self, receiver: int) -> Frame:
        """A copy for another `receiver`."""
        return Frame(
            self.run,
            self.sender,
            receiver,
            self.generation,
            self.round,
            self.slots,
            self.waits,
            self.fingerprint,
            self.leg,
        )

    @property
    def turn(self) -> tuple[int, int]:
        """The turn of these values, as (round, leg)."""
        return self.round, self.leg


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for `length` bytes of the blob `name` from `offset` on; fewer come if the blob ends."""

    run: bytes
    sender: int
    receiver: int
    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Answers a Fetch. The requested bytes follow it.

    `checksum` is the checksum of these bytes. `size` is the size of the whole blob in bytes.
    """

    run: bytes
    sender: int
    receiver: int
    name: str
    offset: int
    size: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class End:
    """After round `last` the sender takes part in no round until it takes its average `number`.

    If `number` is FOREVER, it takes part in no round ever again. No values follow.
    """

    run: bytes
    sender: int
    receiver: int
    generation: int
    last: int
    number: int


@dataclass(frozen=True, slots=True)
class Posted:
    """Tells a peer, after a broken connection works again, how far the sender has sent.

    The sender has sent everything up to this `leg` of round `last`. What has not arrived of that is
    lost. No values follow.
    """

    run: bytes
    sender: int
    receiver: int
    last: int
    leg: int


Header = Frame | Fetch | Chunk | End | Posted

headers: Codec[Header] = Codec(get_args(Header), limit=HEADER_LIMIT, prefix=(VERSION,))


def checksum(data: memoryview) -> bytes:
    """The BLAKE2b-64 checksum of a chunk's bytes."""
    return hashlib.blake2b(data, digest_size=8).digest()
