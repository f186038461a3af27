"""A member's metrics in Prometheus's format. Needs prometheus-client, the extra `metrics`.

An `Exporter` shows the member's last progress report, which is about a second old. So a scrape
costs training nothing. The coordinator serves the population's metrics (its flag `--http`).
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

from washp2p.protocol.endpoints import http_address
from washp2p.protocol.ledger import Loss
from washp2p.protocol.refusals import Reason
from washp2p.protocol.version import VERSION
from washp2p.reporting.httpd import Service
from washp2p.reporting.prometheus import every, exposition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from prometheus_client.core import Metric

    from washp2p.driver.member import Member

__all__ = ["Exporter"]


class Exporter:
    """Serves a member's metrics at http://ADDRESS/metrics, on a thread of its own, until closed.

    >>> exporter = Exporter("127.0.0.1:*")
    >>> exporter.address.startswith("http://127.0.0.1:")
    True
    >>> exporter.close()
    """

    def __init__(self, address: str, *, public: bool = False) -> None:
        """Listen at `address`, HOST:PORT. Port `*` means any free port.

        An address off loopback needs `public`, because anybody can read the metrics there. Raises
        UsageError if the address cannot be used, or if prometheus-client is not installed.
        """
        self._member: weakref.ref[Member] | None = None
        self._run = ""
        place = http_address(address, public=public)
        exposition({})  # whether it can be had
        self._service = Service(place, {"/metrics": self._answer}, flag="--metrics")
        self.address = f"{self._service.address}/metrics"
        """The URL of the metrics."""

    def watch(self, member: Member, run: str) -> None:
        """From now on show `member`, of the run named `run`. Only a weak reference is kept."""
        self._member, self._run = weakref.ref(member), run

    def close(self) -> None:
        """Stop serving."""
        self._service.close()

    def _answer(self, _: object) -> tuple[str, bytes]:
        member = None if self._member is None else self._member()
        return exposition(() if member is None else _families(member, self._run))


def _families(member: Member, run: str) -> Iterator[Metric]:
    """A member's metric families: only its version before the first progress report."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    own = [run, str(member.id)]

    def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            family = GaugeMetricFamily(f"washp2p_{name}", text, labels=["run", "member"])
            family.add_metric(own, value)
            yield family

    def counter(name: str, text: str, *labels: str, rows: Iterable[tuple[Any, ...]]) -> Metric:
        family = CounterMetricFamily(f"washp2p_{name}", text, labels=["run", "member", *labels])
        for *values, count in rows:
            family.add_metric([*own, *map(str, values)], count)
        return family

    info = InfoMetricFamily("washp2p", "What this member runs", labels=["run", "member"])
    info.add_metric(own, {"version": VERSION})
    yield info
    vitals = member.vitals
    if vitals is None:
        return
    yield from gauge("members", "Members of the newest roster", len(member.members))
    yield from gauge("generation", "Generation of the roster of the last round", vitals.generation)
    yield from gauge("delay_rounds", "How late values have been of late", vitals.late)
    bound = int(vitals.max_delay) if vitals.max_delay.isdecimal() else None
    yield from gauge("delay_bound_rounds", "How late values may be (none: no bound)", bound)
    distance = math.sqrt(vitals.distance) if vitals.distance >= 0 else None
    text = "Of the population from its mean, a Euclidean norm, as this member estimates it"
    yield from gauge("consensus_distance", text, distance)
    for name, text, value in (
        ("rounds", "Rounds taken part in", vitals.steps),
        ("training_seconds", "Since its first round began", vitals.seconds),
        ("wait_seconds", "Spent waiting for peers", vitals.waited),
        ("plan_seconds", "CPU time of deriving plans, beside training", vitals.planning),
        ("applied_values", "Values received and applied", vitals.applied),
        ("refused_values", "Values refused, not being finite", vitals.refused),
    ):
        yield counter(name, text, rows=[(value,)])
    text = "Payload and headers sent to peers"
    yield counter("sent_bytes", text, "peer", "kind", "wire", rows=vitals.sent)
    text = "Values that never came, or in vain"
    yield counter("lost_values", text, "reason", rows=every(Loss, vitals.lost))
    text = "Messages refused"
    yield counter("refused_messages", text, "reason", rows=every(Reason, vitals.refused_messages))
