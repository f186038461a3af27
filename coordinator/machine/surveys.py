"""Surveys of how far members are apart: members' parts of one, put together. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.protocol.surveys import consensus_line

if TYPE_CHECKING:
    from washp2p.protocol.messages.from_worker import Surveyed
    from washp2p.protocol.roster import MemberId

OPEN = 64
"""Surveys of which parts may be missing: of an older one, something is lost."""


class Surveys:
    """Of one run."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, bool], dict[MemberId, Surveyed]] = {}

    def add(self, member: MemberId, part: Surveyed) -> dict[str, Any] | None:
        """A member's part; a line of consensus.jsonl, if it is the last one of its round."""
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
