"""The headers of data-plane messages: encoding and validation, no sockets.

A message is a header of at most 96 bytes, and raw values. The header names sender and receiver, so
a message that reaches the wrong member is refused. It does not name the values' dtype, which is the
slot's in the layout. docs/protocol.md describes every byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import get_args

from washp2p.protocol.messages.records import Codec

VERSION = 5
FIRST, SECOND, MOMENTS, SURVEY = range(4)
"""Legs of a round: what members send first, what they make of it and pass on, and, beside that,
the moments of their features (REPAIR) and what they only look at."""
BESIDE = MOMENTS
"""This leg and those after it are no values to apply: vectors of the parameters' dtype."""
FOREVER = 1 << 32
"""The number of an average that is never taken: its member ends for good."""
HEADER_LIMIT = 96
RUN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """Values of one round from one sender, one slot after the other.

    `waits` is the share of its time, per mille, that the sender spends waiting for peers.
    `fingerprint` differs if sender and receiver derived different plans. `leg` tells apart several
    messages of a round.
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
        """Round and leg."""
        return self.round, self.leg


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for `length` bytes at `offset` of the blob `name`, or fewer where it ends."""

    run: bytes
    sender: int
    receiver: int
    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Answers a Fetch. The bytes follow; `checksum` is theirs, `size` is the whole blob's."""

    run: bytes
    sender: int
    receiver: int
    name: str
    offset: int
    size: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The sender takes part in no round after `last` before its average `number`.

    No values follow.
    """

    run: bytes
    sender: int
    receiver: int
    generation: int
    last: int
    number: int


@dataclass(frozen=True, slots=True)
class Posted:
    """A broken connection works again: the sender has sent all up to this `leg` of round `last`.

    Messages up to there that have not arrived are lost. No values follow.
    """

    run: bytes
    sender: int
    receiver: int
    last: int
    leg: int


Header = Frame | Fetch | Chunk | End | Posted

headers: Codec[Header] = Codec(get_args(Header), limit=HEADER_LIMIT, prefix=(VERSION,))


def checksum(data: memoryview) -> bytes:
    """BLAKE2b-64 of a chunk's bytes."""
    return hashlib.blake2b(data, digest_size=8).digest()
