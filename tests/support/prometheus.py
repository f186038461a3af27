"""What a scrape says, as tests read it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def samples(text):
    """By name, of each sample its labels and value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def series(text, *ignored):
    """By name and the values of all labels but those `ignored`, in the order of their names."""
    return {
        (name, *(value for key, value in sorted(labels.items()) if key not in ignored)): count
        for name, rows in samples(text).items()
        for labels, count in rows
    }
