"""Rounds, their seeds, and the roster of a generation.

The coordinator and the members share these values and functions. They need no NumPy and no torch.
Rounds count from 1. Round t follows each member's own optimizer step t.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MemberId = int
SEED_BYTES = 8


def run_key(seed: int) -> bytes:
    """The 32-byte key from which all round seeds of a run are derived.

    Only the coordinator has it. Members get seeds, window by window.
    """
    return hashlib.blake2b(
        seed.to_bytes(8, "little"), digest_size=32, person=b"washp2p.runkey"
    ).digest()


def round_seed(key: bytes, round_number: int) -> int:
    """The 64-bit seed of one round: keyed BLAKE2b of the round number.

    >>> hex(round_seed(run_key(0), 1))
    '0xd83033dfe58f9572'
    """
    digest = hashlib.blake2b(
        round_number.to_bytes(8, "little"), digest_size=SEED_BYTES, key=key, person=b"washp2p.seed"
    ).digest()
    return int.from_bytes(digest, "little")


def pack_seeds(seeds: list[int]) -> bytes:
    """The seeds of consecutive rounds as bytes: 8 each, little-endian."""
    return b"".join(seed.to_bytes(SEED_BYTES, "little") for seed in seeds)


def unpack_seeds(data: bytes) -> list[int]:
    """Inverse of `pack_seeds`."""
    return [
        int.from_bytes(data[at : at + SEED_BYTES], "little")
        for at in range(0, len(data), SEED_BYTES)
    ]


@dataclass(frozen=True)
class Peer:
    """One member as its peers see it: its id, its data plane's address, its host's name.

    `key` is its data plane's public key; it is empty without encryption. `near` has further
    addresses, the nearest first, for peers whose `place` is the same.
    """

    member: MemberId
    endpoint: str
    host: str = ""
    key: bytes = b""
    near: tuple[str, ...] = ()
    place: str = ""

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Inverse of `row`. Raises ValueError or TypeError if it is not such a row."""
        member, endpoint, host, key, near, place = row
        return cls(member, endpoint, host, key, tuple(near), place)

    @property
    def row(self) -> tuple[MemberId, str, str, bytes, list[str], str]:
        """The fields in order, as they are sent and stored."""
        return self.member, self.endpoint, self.host, self.key, list(self.near), self.place

    def shares(self, place: str, device: str) -> bool:
        """Whether the peer's values are on the same `device` at the same `place`."""
        return bool(device) and place == self.place and device in map(_device_of, self.near)

    def ways(self, place: str, device: str) -> list[str]:
        """The addresses at which this peer is reached from `place` and `device`, nearest first.

        `device` is the one in the `torch://` address of the member that asks; empty if it has none.

        >>> near = ("torch://127.0.0.1:9/cpu", "ipc://@washp2p-1")
        >>> peer = Peer(1, "tcp://10.0.0.1:7", near=near, place="here")
        >>> peer.ways("here", device="")
        ['ipc://@washp2p-1', 'tcp://10.0.0.1:7']
        >>> peer.ways("elsewhere", device="cpu")
        ['tcp://10.0.0.1:7']
        """
        near = self.near if place == self.place else ()
        return [*(way for way in near if _fits(way, device)), self.endpoint]


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The members of one generation, in order; a *position* is an index into `peers`.

    Permutations act on positions; frames and files carry MemberIds. The generation begins with
    round `first`.
    """

    generation: int
    peers: tuple[Peer, ...]
    first: int = 1

    @classmethod
    def from_rows(cls, generation: int, first: int, rows: Sequence[Any]) -> Self:
        """Inverse of `rows`. Raises ValueError or TypeError if they are not such rows."""
        peers = tuple(map(Peer.from_row, rows))
        return cls(generation=generation, first=first, peers=peers)

    @property
    def rows(self) -> list[Any]:
        """The peers as they are sent and stored."""
        return [list(peer.row) for peer in self.peers]

    @cached_property
    def members(self) -> tuple[MemberId, ...]:
        """MemberIds by position."""
        return tuple(peer.member for peer in self.peers)

    def position(self, member: MemberId) -> int:
        """The position of `member`. Raises ValueError if it is not in this generation."""
        return self.members.index(member)

    def digest(self) -> bytes:
        """Eight bytes that differ when the generation or its members do."""
        text = f"{self.generation}:" + ",".join(map(str, self.members))
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


class Order(NamedTuple):
    """The inputs of a round's plan."""

    round: int
    seed: int
    roster: Roster


def _fits(way: str, device: str) -> bool:
    """Whether values on `device` can travel by the address `way`.

    A `torch://` address needs two different GPUs, or the CPU at both ends.
    """
    other = _device_of(way)
    if not way.startswith("torch://") or other == device == "cpu":
        return True
    return bool(device) and "cpu" not in {device, other} and device != other


def _device_of(way: str) -> str:
    return way.partition("://")[2].partition("/")[2]


def roster_at(rosters: Sequence[Roster], round_number: int) -> Roster:
    """The roster of a round: the newest one that begins no later."""
    return next(roster for roster in reversed(rosters) if roster.first <= round_number)


def by_roster(rosters: Sequence[Roster], rounds: range) -> Iterator[tuple[Roster, range]]:
    """Each roster that holds for some of `rounds`, in order, with the range of these rounds."""
    for roster, following in zip_longest(rosters, rosters[1:]):
        stop = rounds.stop if following is None else min(following.first, rounds.stop)
        its = range(max(rounds.start, roster.first), stop)
        if its:
            yield roster, its
