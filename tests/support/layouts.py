"""Layouts made from parameter sizes."""

from __future__ import annotations

from washp2p.protocol.layout import Entry, Layout, Slot, aligned


def make_layout(layers, slots=("param",), dtype="float32", *, rows=False):
    """A layout from parameter sizes by layer, e.g. [[9, 3], [12]].

    With `rows`, every other parameter of a layer has two rows, if its size is even.
    """
    entries = []
    offset = 0
    for layer, sizes in enumerate(layers):
        for number, size in enumerate(sizes):
            offset = aligned(offset, 4)
            halves = rows and number % 2 and not size % 2
            shape, stride = ((2, size // 2), (size // 2, 1)) if halves else ((size,), (1,))
            name = f"{layer}.{number}"
            entries.append(Entry(name=name, shape=shape, stride=stride, layer=layer, offset=offset))
            offset += size
    return Layout(tuple(entries), tuple(Slot(name=name, dtype=dtype) for name in slots))
