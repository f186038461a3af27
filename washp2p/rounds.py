"""Rounds, their seeds, and the roster of an epoch.

Pure values and arithmetic, shared by the coordinator (which must not import NumPy or torch) and
the members. Rounds count from 1; round t follows each member's own optimizer step t.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

MemberId = int
SEED_BYTES = 8


def run_key(seed: int) -> bytes:
    """The 32-byte key from which all round seeds of a run are derived.

    It stays with the coordinator: members get seeds, window by window, never the key.
    """
    return hashlib.blake2b(
        seed.to_bytes(8, "little"), digest_size=32, person=b"washp2p.runkey"
    ).digest()


def round_seed(key: bytes, round_number: int) -> int:
    """The 64-bit seed of one round: keyed BLAKE2b of the round number."""
    digest = hashlib.blake2b(
        round_number.to_bytes(8, "little"), digest_size=SEED_BYTES, key=key, person=b"washp2p.seed"
    ).digest()
    return int.from_bytes(digest, "little")


def pack_seeds(seeds: list[int]) -> bytes:
    """Seeds of consecutive rounds as they travel: 8 bytes each, little-endian."""
    return b"".join(seed.to_bytes(SEED_BYTES, "little") for seed in seeds)


def unpack_seeds(data: bytes) -> list[int]:
    """Inverse of `pack_seeds`."""
    return [
        int.from_bytes(data[at : at + SEED_BYTES], "little")
        for at in range(0, len(data), SEED_BYTES)
    ]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One member as its peers see it: its id, where its data plane listens, where it runs."""

    member: MemberId
    endpoint: str
    host: str


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The members of one epoch, in order; a *position* is an index into `peers`.

    Permutations act on positions; frames and files carry MemberIds.
    """

    epoch: int
    peers: tuple[Peer, ...]

    @cached_property
    def members(self) -> tuple[MemberId, ...]:
        """MemberIds by position."""
        return tuple(peer.member for peer in self.peers)

    def position(self, member: MemberId) -> int:
        """The position of `member`. Raises ValueError if it is not in this epoch."""
        return self.members.index(member)

    def digest(self) -> bytes:
        """Eight bytes that differ when the epoch or its members do."""
        text = f"{self.epoch}:" + ",".join(map(str, self.members))
        return hashlib.blake2b(text.encode(), digest_size=8).digest()
