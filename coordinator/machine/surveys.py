"""Combines the members' parts of each survey. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.protocol.surveys import consensus_line

if TYPE_CHECKING:
    from washp2p.protocol.messages.from_worker import Surveyed
    from washp2p.protocol.roster import MemberId

OPEN = 64
"""Surveys of which parts may be missing: of an older one, something is lost."""


class Surveys:
    """The surveys of one run."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, bool], dict[MemberId, Surveyed]] = {}

    def add(self, member: MemberId, part: Surveyed) -> dict[str, Any] | None:
        """Add a member's part.

        Returns a line of consensus.jsonl once all parts of the round are there, else None.
        """
        which = part.round, part.exact
        parts = self._open.setdefault(which, {})
        parts[member] = part
        if len(parts) < part.members:
            while len(self._open) > OPEN:
                del self._open[min(self._open)]
            return None
        del self._open[which]
        squares = [sum(column) for column in zip(*(p.squares for p in parts.values()), strict=True)]
        return consensus_line(part.round, part.members, squares, exact=part.exact)
