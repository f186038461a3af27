"""A population's metrics in Prometheus's format. Needs the extra `metrics`.

Each member serves its own metrics (`washp2p.metrics`). These are of the population as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.protocol.ledger import Kind, Loss
from washp2p.protocol.refusals import Reason
from washp2p.reporting import prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

STATES = ("welcomed", "attached", "enrolled", "finished", "accounted", "away")
GAUGES = {
    "generation": ("generation", "Generation of the newest roster"),
    "round": ("round", "Last round of the slowest member"),
    "rounds": ("rounds", "Rounds of the whole run, 0 if not known"),
    "rounds_per_second": ("rounds_per_second", "Pace of the slowest member"),
    "seconds_left": ("left_seconds", "Until the last round, at this pace"),
    "distance": ("consensus_distance", "Of members from their mean, a Euclidean norm"),
    "loss": ("loss", "Mean of what members last reported"),
    "held_out": ("held_out_percent", "Mean accuracy that members last reported"),
    "checkpoint": ("checkpoint_round", "Round of the last checkpoint that all members have"),
    "n": ("wanted_members", "Members that the run is for"),
}
TOTALS = {
    "sent": ("sent_bytes", "Payload and headers sent among members", "kind", Kind),
    "lost": ("lost_values", "Values that never came, or in vain", "reason", Loss),
    "refused_messages": ("refused_messages", "Messages that members refused", "reason", Reason),
}


def exposition(view: dict[str, Any]) -> tuple[str, bytes]:
    """Content type and text of a `view`. Raises UsageError without prometheus-client."""
    return prometheus.exposition(families(view))


def families(view: dict[str, Any]) -> Iterator[Metric]:
    """The metric families of a `view`, each labelled with the run's name."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    run = view["run"]

    def family(
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        values: Mapping[str, float | None],
        label: str = "",
    ) -> Metric:
        """One family: a value for each value of `label`, or one value without a label.

        Values that are None are left out.
        """
        made = kind(f"washp2p_{name}", text, labels=["run", label] if label else ["run"])
        for key, value in values.items():
            if value is not None:
                made.add_metric([run, key] if label else [run], value)
        return made

    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    for key, (name, text) in GAUGES.items():
        yield family(gauge, f"population_{name}", text, {"": view[key]})
    states = [row["state"] for row in view["members"]]
    counts = {state: states.count(state) for state in STATES}
    yield family(gauge, "population_members", "Members, by state", counts, "state")
    for key, (name, text, label, known) in TOTALS.items():
        totals = dict(prometheus.every(known, view["totals"][key]))
        yield family(counter, f"population_{name}", text, totals, label)
    text = "Members that were dropped"
    yield family(counter, "population_departed_members", text, {"": len(view["departed"])})
    text = "Messages that the coordinator refused"
    refused = dict(prometheus.every(Reason, view["refused_messages"]))
    yield family(counter, "coordinator_refused_messages", text, refused, "reason")
    accuracy = view["accuracy"]
    models = {key: accuracy.get(key) for key in ("ensemble", "averaged", "greedy_soup")}
    text = "Test accuracy at the end"
    yield family(gauge, "population_accuracy_percent", text, models, "model")
