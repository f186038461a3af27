"""What displays show of a run: each member's round, pace, traffic and metrics. No I/O.

The values come from the members' own reports. All displays of a run show the same values.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite, sqrt
from typing import TYPE_CHECKING, Any

from coordinator.machine.members import Phase
from washp2p.protocol.ledger import Kind
from washp2p.protocol.surveys import consensus_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.machine.commands import Event
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population
    from washp2p.protocol.messages.from_worker import Surveyed, Vitals
    from washp2p.protocol.roster import MemberId

EVENTS = 100
"""The number of latest events that are remembered."""
ROWS = 20_000
"""The largest number of rows of bytes sent in a view, since a view is one message."""
MOST = 1 << 62
"""The largest number of bytes, values or messages that is shown, whatever members report."""
AGES = 1e9
"""The largest number of remaining seconds that is shown."""
WEIGHT = 0.3
"""The weight of the newest rate in the moving average that is shown."""
OPEN = 64
"""The number of incomplete surveys that are kept. Older ones are forgotten: a part was lost."""


@dataclass
class _Pace:
    """A growing total, and the speed at which it grows."""

    total: float = 0.0
    at: float | None = None
    rate: float = 0.0

    def reach(self, total: float, now: float) -> None:
        if self.at is not None and now > self.at:
            rate = max(0.0, total - self.total) / (now - self.at)
            self.rate += (rate - self.rate) * (WEIGHT if self.rate else 1.0)
        self.total, self.at = total, now


@dataclass
class _Seen:
    """The last reports of one member."""

    vitals: Vitals | None = None
    rounds: _Pace = field(default_factory=_Pace)
    sent: _Pace = field(default_factory=_Pace)
    by_kind: Counter[str] = field(default_factory=Counter)
    """Bytes sent, by kind: added up once per report, because a report may have very many links."""
    metrics: dict[str, Any] = field(default_factory=dict)


class Observation:
    """Remembers the last report of each member, and the latest events."""

    def __init__(self) -> None:
        self._seen: dict[MemberId, _Seen] = {}
        self._events: deque[tuple[float, Event]] = deque(maxlen=EVENTS)
        self._measured: float | None = None

    def measured(self, values: dict[str, Any]) -> None:
        """Keep the distance that a survey found. It replaces the estimate from members' reports."""
        self._measured = float(values["distance"])

    def event(self, event: Event, when: float) -> None:
        """Remember an event; `when` is in seconds since 1970."""
        self._events.append((when, event))

    def metrics(self, member: MemberId, values: dict[str, Any]) -> None:
        """Remember a member's line of metrics."""
        self._of(member).metrics = values

    def vitals(self, member: KnownMember, vitals: Vitals, now: float) -> None:
        """Remember a member's progress report. `now` is in seconds, of any steady clock."""
        seen = self._of(member.id)
        seen.vitals = vitals
        seen.rounds.reach(vitals.steps, now)
        seen.by_kind = Counter()
        for _, kind, _, count in vitals.sent:
            seen.by_kind[kind] += count
        seen.sent.reach(seen.by_kind.total(), now)

    def distance(self, members: Iterable[MemberId]) -> float | None:
        """The Euclidean distance of `members` from their mean; None if it is not known.

        It is the result of the last survey. Without a survey it is estimated from members' reports.
        """
        if self._measured is not None:
            return self._measured
        told = [
            seen.vitals.distance
            for member in members
            if (seen := self._of(member)).vitals is not None and seen.vitals.distance >= 0
        ]
        return sqrt(sum(one / len(told) for one in told)) if told else None

    def point(self, population: Population) -> dict[str, Any]:
        """A point of the population's curves, as plain values.

        `round` and `rounds_per_second` are the smallest of any member. `loss` and `held_out` are
        means over the members that report them.
        """
        enrolled = population.enrolled()
        seen = [self._of(member.id) for member in enrolled]
        losses = [x for one in seen if (x := _figure(one.metrics.get("loss"))) is not None]
        scores = [x for one in seen if (x := _figure(one.metrics.get("held_out"))) is not None]
        return {
            "round": min((member.rounds for member in enrolled), default=0),
            "generation": population.roster.generation,
            "members": len(enrolled),
            "rounds_per_second": round(min((one.rounds.rate for one in seen), default=0.0), 3),
            "bytes_per_second": round(sum(one.sent.rate for one in seen), 1),
            "distance": self.distance(member.id for member in enrolled),
            "loss": _mean(losses),
            "held_out": _mean(scores),
            "held_out_low": min(scores, default=None),
            "held_out_high": max(scores, default=None),
        }

    def totals(self) -> dict[str, dict[str, int]]:
        """Totals over all members, including departed ones.

        They are the bytes sent, by kind, and the values lost and messages refused, by reason.
        """
        sent: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        for seen in self._seen.values():
            sent.update(seen.by_kind)
            if (vitals := seen.vitals) is not None:
                lost.update(vitals.lost)
                refused.update(vitals.refused_messages)
        return {
            name: {key: min(count, MOST) for key, count in counts.items()}
            for name, counts in (("sent", sent), ("lost", lost), ("refused_messages", refused))
        }

    def view(self, population: Population, *, links: bool = True) -> dict[str, Any]:
        """The whole observation as plain values; docs/protocol.md lists them.

        Without `links`, it leaves out how many bytes each member sent to each other member.
        """
        members = sorted(population.members.values(), key=lambda member: member.id)
        point = self.point(population)
        rate, total = point["rounds_per_second"], population.total_rounds
        left = min(AGES, (total - point["round"]) / rate) if rate and total else None
        config = population.config
        return {
            "state": _state(population),
            "method": config.method.name,
            "p": config.method.p,
            "n": config.n,
            "data": config.training.data,
            "rounds": total,
            "seconds_left": None if left is None else round(left, 1),
            **point,
            "totals": self.totals(),
            "accuracy": population.accuracy,
            "checkpoint": population.kept,
            "members": [self._row(member) for member in members],
            "departed": [
                {"member": gone.member, "host": gone.host, "reason": gone.reason}
                for gone in population.departed
            ],
            "sent": self._matrix(members) if links else [],
            "events": [
                {
                    "at": round(at, 3),
                    "event": str(event.what),
                    "member": event.member,
                    "text": event.text,
                }
                for at, event in self._events
            ],
        }

    def _of(self, member: MemberId) -> _Seen:
        return self._seen.setdefault(member, _Seen())

    def _row(self, member: KnownMember) -> dict[str, Any]:
        seen = self._of(member.id)
        row: dict[str, Any] = {
            "member": member.id,
            "host": member.host,
            "state": member.phase.name.lower() if member.connected else "away",
            "round": member.rounds,
            "rounds_per_second": round(seen.rounds.rate, 3),
            "bytes_per_second": round(seen.sent.rate, 1),
            "bytes": int(min(seen.sent.total, MOST)),
            "loss": _figure(seen.metrics.get("loss")),
            "held_out": _figure(seen.metrics.get("held_out")),
        }
        if (vitals := seen.vitals) is not None:
            row |= {
                "steps": vitals.steps,
                "seconds": round(vitals.seconds, 3),
                "waited": round(vitals.waited, 3),
                "planning": round(vitals.planning, 3),
                "max_delay": vitals.max_delay,
                "late": round(vitals.late, 3),
                "applied": vitals.applied,
                "lost": min(sum(vitals.lost.values()), MOST),
                "refused": vitals.refused,
                "refused_messages": vitals.refused_messages,
            }
        return row

    def _matrix(self, members: Iterable[KnownMember]) -> list[dict[str, Any]]:
        """Bytes sent by each member to each other, by kind and wire; at most ROWS rows."""
        rows = (
            {"member": member.id, "peer": peer, "kind": Kind(kind).value, "wire": wire, "bytes": n}
            for member in members
            if (vitals := self._of(member.id).vitals) is not None
            for peer, kind, wire, n in vitals.sent
        )
        return list(islice(rows, ROWS))


def _mean(values: list[float]) -> float | None:
    return sum(value / len(values) for value in values) if values else None


def _figure(value: Any) -> float | None:
    """`value` as a float; None if it is not a finite number."""
    if isinstance(value, float) and isfinite(value):
        return value
    return float(value) if isinstance(value, int) and abs(value) < MOST else None


def _state(population: Population) -> str:
    if population.ended:
        return "ended"
    if not population.started or not population.publication.begun:
        return "waiting"
    enrolled = [m for m in population.members.values() if m.phase >= Phase.ENROLLED]
    total = population.total_rounds
    done = total and all(member.rounds >= total for member in enrolled)
    averages = any(member.averaging[0] > 0 for member in enrolled)
    return "averaging" if done or averages else "training"


class Surveys:
    """Combines the members' parts of each survey of one run."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, bool], dict[MemberId, Surveyed]] = {}

    def add(self, member: MemberId, part: Surveyed) -> dict[str, Any] | None:
        """Add a member's part.

        Returns a line of consensus.jsonl once all parts of the round are there, else None.
        """
        which = part.round, part.exact
        parts = self._open.setdefault(which, {})
        parts[member] = part
        if len(parts) < part.members:
            while len(self._open) > OPEN:
                del self._open[min(self._open)]
            return None
        del self._open[which]
        squares = [sum(column) for column in zip(*(p.squares for p in parts.values()), strict=True)]
        return consensus_line(part.round, part.members, squares, exact=part.exact)
