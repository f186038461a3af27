"""How long a worker is without its coordinator, and when it stops waiting for one. No I/O."""

from __future__ import annotations

from washp2p.errors import RunStoppedError
from washp2p.protocol.patience import Patience


class Absence:
    """Keeps when a worker last heard from its coordinator, and when it lost the connection.

    The coordinator is at `address`. All times are in seconds, of any steady clock.
    """

    def __init__(self, address: str, now: float) -> None:
        self.patience = Patience()
        """How long to wait for a coordinator; may be set anew."""
        self._address = address
        self._heard_at = now
        self._lost_at: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the connection is lost at present."""
        return self._lost_at is not None

    def heard(self, now: float) -> None:
        """Record that something has come from the coordinator."""
        self._heard_at = now

    def begin(self, now: float) -> None:
        """Record when the connection was lost; does nothing if it is lost already."""
        self._lost_at = now if self._lost_at is None else self._lost_at

    def end(self, now: float) -> bool:
        """Record that the connection works. Returns whether it was lost before."""
        lasted, self._lost_at, self._heard_at = self.lasts, None, now
        return lasted

    def problem(self, now: float) -> RunStoppedError | None:
        """The error that tells why this worker must not wait any longer; None if it may wait."""
        if self._lost_at is None:
            return None
        asleep = self._lost_at - self._heard_at
        if asleep > self.patience.asleep and now - self._lost_at > self.patience.back:
            return RunStoppedError(
                f"this process heard nothing for {asleep:.0f} s and was dropped (it was "
                f"stopped, or cut off), and no coordinator is at {self._address} any more: the "
                "run is over"
            )
        if now - self._lost_at > self.patience.away:
            return RunStoppedError(
                f"the coordinator at {self._address} has been gone for "
                f"{self.patience.away:g} s; what this member has written is kept: start "
                "it again (python -m coordinator --resume RUN) and workers with it"
            )
        return None
