"""Refusals: what was refused of whom, by reason, and who keeps at it.

A message that cannot be is dropped and counted here, on both planes. A peer has an allowance that
fills up again with time; one that has used it up is an offender, and is to be cut off. No sockets.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

P = TypeVar("P", bound="Hashable")

TOLD = 10
"""Peers of whom, for each reason, a refusal is told of."""


class Reason(StrEnum):
    """Why a message is refused."""

    MALFORMED = "malformed"
    RUN = "of another run"
    SENDER = "under another's name"
    STRANGER = "of no member"
    ASTRAY = "for another member"
    ROUND = "of an impossible round"
    PLAN = "not in the plan"
    OTHER_PLAN = "of another plan"
    LENGTH = "of the wrong length"
    AGAIN = "sent again"
    CHECKSUM = "of another checksum"
    REQUEST = "asking for what is not there"
    UNASKED = "not asked for"
    CLAIM = "claiming what cannot be"


class Refusals(Generic[P]):
    """Peers' allowances: `burst` at first and at most, `rate` more each second.

    `tell` is told of the first message of a peer that is refused for a reason, of TOLD peers.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: float,
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._tell = tell
        self.refused: Counter[Reason] = Counter()
        """Messages, by reason."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._used: dict[P, tuple[float, float]] = {}
        self._told: Counter[Reason] = Counter()
        self._seen: set[tuple[P | None, Reason]] = set()
        self._offenders: dict[P, str] = {}

    def refuse(self, peer: P | None, reason: Reason, detail: str, *, cost: float = 1) -> None:
        """A message of `peer` was dropped; None where nobody can tell whose it was."""
        self.refused[reason] += 1
        if (peer, reason) not in self._seen and self._told[reason] < TOLD:
            self._seen.add((peer, reason))
            self._told[reason] += 1
            self._tell(f"refused a message {reason}: {detail}")
        if peer is not None:
            self.charge(peer, cost, f"messages {reason}, as {detail}")

    def charge(self, peer: P, cost: float, what: str) -> None:
        """Take `cost` from a peer's allowance because of `what`."""
        now = self._clock()
        used, since = self._used.get(peer, (0.0, now))
        used = max(0.0, used - self._rate * (now - since)) + cost
        self._used[peer] = (used, now)
        if used > self._burst:
            self._offenders.setdefault(peer, what)

    def take_offenders(self) -> dict[P, str]:
        """Who has used up its allowance since the last time, and by what."""
        if not self._offenders:
            return {}
        offenders, self._offenders = self._offenders, {}
        return offenders

    def forget_idle(self) -> None:
        """Let go of peers whose allowance is whole again. To be called now and then."""
        now = self._clock()
        self._used = {
            peer: (used, since)
            for peer, (used, since) in self._used.items()
            if used > self._rate * (now - since)
        }
