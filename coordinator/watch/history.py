"""How a population has come along: points over time, more of them at first than later. Pure."""

from __future__ import annotations

from typing import Any

EVERY_SECONDS = 1.0
FRACTION = 500
"""Points are no closer than this share of the time that a run has taken, so there are few
thousand however long it takes: FRACTION, and FRACTION more whenever that grows e-fold."""


class History:
    """Points of one run, each a dict with `seconds` since its beginning."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        """Go on after `points`."""
        self.points = points
        self._began: float | None = None
        self._before = points[-1]["seconds"] if points else 0.0

    def rewind(self, round_number: int) -> None:
        """The run goes on from a round: forget what came after it."""
        self.points = [point for point in self.points if point["round"] < round_number]

    def due(self, now: float) -> bool:
        """Whether it is time for another. `now` is in seconds, of any steady clock."""
        if self._began is None:
            self._began = now
            return True
        seconds = self._seconds(now)
        last = self.points[-1]["seconds"] if self.points else -EVERY_SECONDS
        return seconds - last >= max(EVERY_SECONDS, seconds / FRACTION)

    def add(self, point: dict[str, Any], now: float) -> dict[str, Any]:
        """Remember a point; it, with its `seconds`."""
        point = {"seconds": round(self._seconds(now), 3), **point}
        self.points.append(point)
        return point

    def _seconds(self, now: float) -> float:
        assert self._began is not None
        return self._before + now - self._began
