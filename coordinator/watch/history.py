"""The population's curves: points over time, denser at first than later. No I/O."""

from __future__ import annotations

from typing import Any

EVERY_SECONDS = 1.0
FRACTION = 500
"""Two points are apart by at least 1/FRACTION of the time that the run has taken.

So even a long run has a few thousand points: FRACTION, and FRACTION more whenever its time grows
e-fold.
"""


class History:
    """The points of one run; each is a dict with `seconds` since the run began."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        """Continue curves that have these `points` so far."""
        self.points = points
        self._began: float | None = None
        self._before = points[-1]["seconds"] if points else 0.0

    def rewind(self, round_number: int) -> None:
        """Delete the points from `round_number` on: the run goes on from that round."""
        self.points = [point for point in self.points if point["round"] < round_number]

    def due(self, now: float) -> bool:
        """Whether the next point is due. `now` is in seconds, of any steady clock."""
        if self._began is None:
            self._began = now
            return True
        seconds = self._seconds(now)
        last = self.points[-1]["seconds"] if self.points else -EVERY_SECONDS
        return seconds - last >= max(EVERY_SECONDS, seconds / FRACTION)

    def add(self, point: dict[str, Any], now: float) -> dict[str, Any]:
        """Add a point. Return it with its `seconds`."""
        point = {"seconds": round(self._seconds(now), 3), **point}
        self.points.append(point)
        return point

    def _seconds(self, now: float) -> float:
        assert self._began is not None
        return self._before + now - self._began
