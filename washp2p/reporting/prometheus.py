"""Prometheus's text format. Needs prometheus-client, the extra `metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric


def exposition(families: Iterable[Metric]) -> tuple[str, bytes]:
    """The content type and the text of `families` in Prometheus's format.

    Raises UsageError if prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, exposition
        from prometheus_client.registry import Collector
    except ImportError:
        raise UsageError(
            "metrics need prometheus-client; pip install prometheus-client (or this project's "
            "extra `metrics`)"
        ) from None

    class Given(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given())
    return exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(registry)


def every(reasons: Iterable[str], counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(reason, count) for each of `reasons`; the count is 0 where `counts` has none."""
    return [(str(reason), counts.get(reason, 0)) for reason in reasons]
