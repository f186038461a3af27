"""How long each part waits for another. All times follow from `--patience`.

Both planes use it. docs/reliability.md has the same table for people.
"""

from __future__ import annotations

from dataclasses import dataclass

FAREWELL_MS = 1000
"""How long a last word may take to leave."""


@dataclass(frozen=True)
class Patience:
    """Times in seconds; `seconds` is the value of `--patience`."""

    seconds: float = 5.0

    @property
    def ping(self) -> float:
        """The time between two checks of a connection."""
        return self.seconds / 10

    @property
    def dead(self) -> float:
        """A connection silent for this long is closed, and the worker behind it is dropped."""
        return self.seconds / 2

    @property
    def mute(self) -> float:
        """How long a member waits, once, for a peer whose connection is broken."""
        return self.seconds

    @property
    def back(self) -> float:
        """How long a coordinator that is back waits for each of its members."""
        return 2 * self.seconds

    @property
    def stalled(self) -> float:
        """How long a member waits for a peer that is alive and slow before it reports it."""
        return 12 * self.seconds

    @property
    def asleep(self) -> float:
        """A process that heard nothing for this long has been dropped.

        It was stopped, or cut off.
        """
        return 2 * self.seconds

    @property
    def away(self) -> float:
        """How long members wait for a coordinator that is gone before they stop."""
        return 60 * self.seconds
