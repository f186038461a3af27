"""Virtual time: what happens when."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Killed(BaseException):
    """A simulated process dies in the middle of what it does."""


class Pause(NamedTuple):
    """The process computes for some seconds."""

    seconds: float


class Until(NamedTuple):
    """The process waits for its coordinator before it is a member."""

    condition: Callable[[], bool]


class Events:
    """A queue of actions by time. `now` is in seconds; it passes only in `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = 0
        """How many actions have been carried out."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[[], None]) -> float:
        """Carry out `action` in `seconds`. Returns when that is."""
        return self.at(self.now + seconds, action)

    def at(self, time: float, action: Callable[[], None]) -> float:
        """Carry out `action` at `time`, after others of the same time. Returns `time`."""
        self._count += 1
        heappush(self._queue, (time, self._count, action))
        return time

    def run(self, over: Callable[[], bool], until: float) -> bool:
        """Let time pass until `over` holds. Returns False if it does not by the time `until`."""
        while not over():
            if not self._queue or self._queue[0][0] > until:
                return False
            self.now, _, action = heappop(self._queue)
            self.done += 1
            action()
        return True
