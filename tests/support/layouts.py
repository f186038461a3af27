"""Layouts made from parameter sizes."""

from __future__ import annotations

from washp2p.protocol.layout import Entry, Layout, Slot, aligned


def make_layout(layers, slots=("param",), dtype="float32"):
    """A layout from parameter sizes by layer, e.g. [[9, 3], [12]]."""
    entries = []
    offset = 0
    for layer, sizes in enumerate(layers):
        for number, size in enumerate(sizes):
            offset = aligned(offset, 4)
            entries.append(
                Entry(
                    name=f"{layer}.{number}", shape=(size,), stride=(1,), layer=layer, offset=offset
                )
            )
            offset += size
    return Layout(tuple(entries), tuple(Slot(name=name, dtype=dtype) for name in slots))
