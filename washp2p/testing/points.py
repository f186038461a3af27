"""Lets something happen as soon as a simulated worker is at a point of `hold_points`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from washp2p.rounds import hold_points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANY = -1


class Points:
    """What is to happen where. `who` returns the number of the worker that is doing something."""

    def __init__(self, who: Callable[[], int]) -> None:
        self._who = who
        self._watched: list[tuple[str, int, Callable[[int], None]]] = []

    def add(self, point: str, worker: int, befall: Callable[[int], None]) -> None:
        """Call `befall` once, with its number, when `worker`, or ANY, is at `point`."""
        self._watched.append((point, worker, befall))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch during a block."""
        before = hold_points.reach
        hold_points.reach = self._reached
        try:
            yield
        finally:
            hold_points.reach = before

    def _reached(self, point: str, _: int) -> None:
        for watched in self._watched:
            at, worker, befall = watched
            if at == point and worker in {ANY, self._who()}:
                self._watched.remove(watched)
                befall(self._who())
                return
