"""The times for which processes wait for each other. All follow from `--patience`.

Both planes use them. docs/reliability.md has the same times in a table.
"""

from __future__ import annotations

from dataclasses import dataclass

FAREWELL_MS = 1000
"""How long a socket that is closed waits for its last messages to leave, in milliseconds."""


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
        """How long a connection may be silent before it is closed and its worker is dropped."""
        return self.seconds / 2

    @property
    def mute(self) -> float:
        """How long a member waits for a peer whose connection is broken. It waits only once."""
        return self.seconds

    @property
    def back(self) -> float:
        """How long a coordinator that has returned waits for each of its members."""
        return 2 * self.seconds

    @property
    def stalled(self) -> float:
        """How long a member waits for a live but slow peer before it reports that peer."""
        return 12 * self.seconds

    @property
    def asleep(self) -> float:
        """How long a process may hear nothing before it counts as dropped.

        Such a process was suspended, or cut off from the network.
        """
        return 2 * self.seconds

    @property
    def away(self) -> float:
        """How long members wait for a coordinator that is gone before they stop."""
        return 60 * self.seconds
