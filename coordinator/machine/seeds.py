"""When to publish which seeds: windows ahead of the fastest member, so that nobody waits.

A window is about a second of rounds, at least 8, at most 256, and at most 5 % of the run where that
is more than 8. Pure arithmetic.
"""

from __future__ import annotations

SMALLEST, LARGEST = 8, 256
SHARE = 20
AHEAD = 2
"""Windows that are out beyond the fastest member's round."""


class SeedWindows:
    """What has been published so far. `rounds` is the length of the run, 0 if not known."""

    def __init__(self, rounds: int, published: int = 0) -> None:
        self._rounds = rounds
        self.published = published

    def due(self, fastest: int, rounds_per_second: float) -> range:
        """Rounds to publish now: one window, or nothing. Call again until it is empty."""
        window = min(max(SMALLEST, round(rounds_per_second)), LARGEST)
        if self._rounds:
            window = min(window, max(SMALLEST, self._rounds // SHARE))
        if self.published >= fastest + AHEAD * window:
            return range(0)
        first = self.published + 1
        last = self.published + window
        if self._rounds:
            last = min(last, self._rounds)
        self.published = max(self.published, last)
        return range(first, last + 1)
