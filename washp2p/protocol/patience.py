"""How long to wait for whom: every time of the fault model, derived from `--patience` alone.

Used by both planes. docs/reliability.md has the same table for people.
"""

from __future__ import annotations

from dataclasses import dataclass

FAREWELL_MS = 1000
"""How long a last word may take to leave."""


@dataclass(frozen=True)
class Patience:
    """Times in seconds; `seconds` is what `--patience` says."""

    seconds: float = 5.0

    @property
    def ping(self) -> float:
        """Between two looks whether a link still holds."""
        return self.seconds / 10

    @property
    def dead(self) -> float:
        """A link silent for so long is closed, and a worker behind it dropped."""
        return self.seconds / 2

    @property
    def mute(self) -> float:
        """So long a member waits for a peer to which its link is broken, once."""
        return self.seconds

    @property
    def back(self) -> float:
        """So long a coordinator that has come back waits for each of its members."""
        return 2 * self.seconds

    @property
    def stalled(self) -> float:
        """So long a member waits for a peer that lives and is slow before it reports it."""
        return 12 * self.seconds

    @property
    def asleep(self) -> float:
        """A process that heard nothing for so long has been dropped: it was stopped, or cut off."""
        return 2 * self.seconds

    @property
    def away(self) -> float:
        """So long members wait for a coordinator that is gone before they stop."""
        return 60 * self.seconds
