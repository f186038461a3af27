"""Counts refused messages by reason, and finds peers that send too many. Uses no sockets.

Both planes drop and count messages that cannot be valid. Each peer has an allowance of them, which
refills with time. A peer that has used up its allowance is an offender, and the caller cuts it off.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

P = TypeVar("P", bound="Hashable")

TOLD = 10
"""For each reason, the number of peers whose first refused message is reported."""


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
    """Counts refused messages. Each peer's allowance is `burst`, refilled by `rate` a second.

    `tell` gets one line for a peer's first refused message of each reason, for at most TOLD peers
    per reason.
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
        """The number of refused messages, by reason."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._used: dict[P, tuple[float, float]] = {}
        self._told: Counter[Reason] = Counter()
        self._seen: set[tuple[P | None, Reason]] = set()
        self.offenders: dict[P, str] = {}
        """Who has used up their allowance since `take_offenders`, each with the reason."""

    def refuse(self, peer: P | None, reason: Reason, detail: str, *, cost: float = 1) -> None:
        """Count a refused message, described by `detail`, and charge `cost` to `peer`.

        `peer` is None if the sender is not known. Then nobody is charged.
        """
        self.refused[reason] += 1
        if (peer, reason) not in self._seen and self._told[reason] < TOLD:
            self._seen.add((peer, reason))
            self._told[reason] += 1
            self._tell(f"refused a message {reason}: {detail}")
        if peer is not None:
            self.charge(peer, cost, f"messages {reason}, as {detail}")

    def charge(self, peer: P, cost: float, what: str) -> None:
        """Take `cost` from a peer's allowance; `what` says why."""
        now = self._clock()
        used, since = self._used.get(peer, (0.0, now))
        used = max(0.0, used - self._rate * (now - since)) + cost
        self._used[peer] = (used, now)
        if used > self._burst:
            self.offenders.setdefault(peer, what)

    def take_offenders(self) -> dict[P, str]:
        """The peers that used up their allowance since the last call, each with the reason."""
        offenders, self.offenders = self.offenders, {}
        return offenders

    def forget_idle(self) -> None:
        """Forget peers whose allowance is whole again. Call it regularly."""
        now = self._clock()
        self._used = {
            peer: (used, since)
            for peer, (used, since) in self._used.items()
            if used > self._rate * (now - since)
        }
