"""Surveys of how far members are apart: members' parts of one, put together. Pure."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from washp2p.control import Surveyed
    from washp2p.rounds import MemberId

OPEN = 64
"""Surveys of which parts may be missing: of an older one, something is lost."""


class Surveys:
    """Of one run."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, bool], dict[MemberId, Surveyed]] = {}

    def add(self, member: MemberId, part: Surveyed) -> dict[str, Any] | None:
        """A member's part; the whole as plain values, if it is the last one of its round.

        `distance` is the root of the members' mean squared Euclidean distance from their mean,
        `quarters` the same over each quarter of the parameters; `exact` if not of a sample.
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
        return {
            "round": part.round,
            "members": part.members,
            "exact": part.exact,
            "distance": sqrt(sum(squares)),
            "quarters": [sqrt(square) for square in squares],
        }
