"""The bound S on how late a round may be applied, and how `auto` finds it.

Measurements go in, the bound comes out. No clocks, no sockets.
"""

from __future__ import annotations

from typing import Protocol

WORTH_WAITING = 0.01
"""If a member waits for at most this share of its time, `auto` takes it as not waiting."""
LIMIT = 32
"""The highest bound, in rounds, that `auto` sets."""
MEASURE, SETTLE = 8, 32
"""Rounds after which `auto` may raise its bound (MEASURE), or lower it (SETTLE)."""
RECENT = 0.02
"""Weight of the last round in two running means: of how late values are, and of the share of its
time that a member waits, which it tells its peers."""


class Delay(Protocol):
    """Decides how late rounds may be."""

    @property
    def bound(self) -> int | None:
        """The bound S: before its next step a member waits for rounds that are S or more behind.
        None means that it never waits.
        """

    def observe(self, *, waited: float, elapsed: float, useful: bool, lateness: int) -> None:
        """Learn from a round. Call it once per round.

        `elapsed` is the seconds since the last round, `waited` the part spent waiting for peers.
        `useful` says whether these peers were waiting as well: then a higher bound helps.
        `lateness` is the largest number of rounds by which applied values were late.
        """


class FixedDelay:
    """A bound that never changes: `--max-delay S` and `--max-delay none`."""

    def __init__(self, bound: int | None) -> None:
        self.bound = bound

    def observe(self, *, waited: float, elapsed: float, useful: bool, lateness: int) -> None:
        """Do nothing: the bound is fixed."""


class AutoDelay:
    """`--max-delay auto`: the smallest S with which the training thread does not wait.

    If this member waits for a peer that waits, too, the network delays both, and S grows: by 1,
    then by 2, 4, ... while that goes on. If the peer does not wait, it computes more slowly; no S
    can change that, and S shrinks by 1. If this member does not wait, S shrinks to the lateness
    that was seen.
    """

    def __init__(self) -> None:
        self.bound = 0
        self._step = 1
        self._skip = 0
        self._rounds = self._lateness = 0
        self._waited = self._idled = self._elapsed = 0.0

    def observe(self, *, waited: float, elapsed: float, useful: bool, lateness: int) -> None:
        """Learn from a round, and change S once enough rounds were seen."""
        if self._skip:
            self._skip -= 1
            return
        self._rounds += 1
        self._elapsed += elapsed
        self._waited += waited if useful else 0.0
        self._idled += 0.0 if useful else waited
        self._lateness = max(self._lateness, lateness)
        if self._rounds < MEASURE:
            return
        if self._waited > WORTH_WAITING * self._elapsed:
            self._change(min(LIMIT, self.bound + self._step))
            self._step *= 2
        elif self._rounds >= SETTLE:
            self._step = 1
            idle = self._idled > WORTH_WAITING * self._elapsed
            self._change(max(0, self.bound - 1) if idle else min(self.bound, self._lateness))

    def _change(self, bound: int) -> None:
        self._skip = abs(bound - self.bound)
        self.bound = bound
        self._rounds = self._lateness = 0
        self._waited = self._idled = self._elapsed = 0.0


def delay_for(max_delay: str) -> Delay:
    """The Delay that `--max-delay` names: a number, `auto` or `none`."""
    if max_delay == "auto":
        return AutoDelay()
    return FixedDelay(None if max_delay == "none" else int(max_delay))
