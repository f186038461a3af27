"""Votes: what members say of each other in one epoch. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from washp2p.protocol.roster import MemberId, Roster


class Votes:
    """Complaints of one kind; a new roster makes those of the last one void."""

    def __init__(self) -> None:
        self._epoch = -1
        self._said: defaultdict[MemberId, set[MemberId]] = defaultdict(set)

    def cast(self, voter: MemberId, of: MemberId, roster: Roster) -> bool:
        """`voter` complains of another; whether by now most others in the roster do."""
        if self._epoch != roster.epoch:
            self._epoch = roster.epoch
            self._said.clear()
        if not {voter, of} <= set(roster.members):
            return False
        self._said[of].add(voter)
        return 2 * len(self._said[of]) > len(roster.members) - 1

    def has(self, voter: MemberId, of: MemberId) -> bool:
        """Whether `voter` has complained of another."""
        return voter in self._said[of]
