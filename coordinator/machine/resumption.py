"""Going on from a checkpoint: which worker becomes which member, and from which round. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.members import Departed
from washp2p.protocol.roster import roster_at

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from coordinator.machine.members import KnownMember, Past
    from washp2p.protocol.roster import MemberId, Roster


class Resumption:
    """A run that is resumed, and the rounds of which its members may hold checkpoints.

    One is the round of the last checkpoint that all members had, if there is any. The other is the
    last published round: members write its checkpoint when no coordinator comes back.
    """

    def __init__(self, past: Past) -> None:
        self._past = past
        complete, members = past.kept
        last = roster_at(past.rosters, past.published).members
        self._places: dict[int, Collection[MemberId]] = {past.published: last}
        if complete:
            self._places[complete] = members

    @property
    def rounds(self) -> list[int]:
        """The rounds whose checkpoints the run can go on from, the newest first."""
        return sorted(self._places, reverse=True)

    def expected(self, here: Iterable[KnownMember]) -> int:
        """How many members to wait for.

        If every present member holds the newest checkpoint, it is the number of members that may
        hold the newest one and were not lost since. Otherwise it is the number of members that had
        the older one.
        """
        newest = max(self._places)
        if any(newest not in member.saved for member in here):
            return len(self._places[min(self._places)])
        lost = {gone.member for gone in self._past.departed if gone.round > newest}
        return len(set(self._places[newest]) - lost)

    @property
    def members(self) -> list[MemberId]:
        """The ids of all members whose checkpoints may exist, in order."""
        return sorted({member for members in self._places.values() for member in members})

    def missing(self, here: Collection[MemberId]) -> str:
        """A text that names the members not in `here`, and a remedy; "" if all are there."""
        missing = [member for member in self.members if member not in here]
        if not missing:
            return ""
        who = ", ".join(f"member {member}" for member in missing)
        rounds = " or ".join(map(str, self.rounds))
        return (
            f"nobody has come with the checkpoint of {who} (round {rounds}); start a worker "
            f"where it is, or this coordinator again with --min-n {len(here)} to go on without"
        )

    @property
    def next_generation(self) -> int:
        """A generation that the run has not used."""
        return self._past.rosters[-1].generation + 1

    def place(
        self, held: Iterable[tuple[int, MemberId]], taken: Collection[MemberId]
    ) -> MemberId | None:
        """The member that a worker with the checkpoints `held` becomes; None if none is free.

        Newer checkpoints come first, then smaller ids. Members in `taken` are not free.
        """
        free = [(-number, member) for number, member in self._known(held) if member not in taken]
        return min(free)[1] if free else None

    def rounds_of(self, member: MemberId, held: Iterable[tuple[int, MemberId]]) -> set[int]:
        """The rounds for which `held` has a checkpoint of `member` that the run can go on from."""
        return {number for number, its in self._known(held) if its == member}

    def most_hold(self, present: Sequence[KnownMember]) -> int:
        """The round whose checkpoint most members hold; of several, the newest."""
        return max(self.rounds, key=lambda n: (sum(n in m.saved for m in present), n))

    def rosters_until(self, round_number: int) -> list[Roster]:
        """The rosters that begin at a round or before it."""
        return [roster for roster in self._past.rosters if roster.first <= round_number]

    def departed_at(self, round_number: int, present: Iterable[KnownMember]) -> list[Departed]:
        """The members lost up to a round, and those of its roster that are not `present` now."""
        there = {member.id for member in present}
        peers = roster_at(self._past.rosters, round_number).peers
        what = "did not come back when the run went on from a checkpoint"
        return [gone for gone in self._past.departed if gone.round <= round_number] + [
            Departed(peer.member, peer.host, what, round_number + 1)
            for peer in peers
            if peer.member not in there
        ]

    def _known(self, held: Iterable[tuple[int, MemberId]]) -> Iterator[tuple[int, MemberId]]:
        """The checkpoints in `held` that the run can go on from."""
        return (pair for pair in held if pair[1] in self._places.get(pair[0], ()))
