"""The layout: the flat order of all trainable parameters, the slots, and the buffers.

A layout is a description without tensors. `model/store.py` makes it from a model. A member sends it
when it attaches, and the coordinator compares the members' layouts. Members with different layouts
never exchange a value, and never average a buffer.

Every parameter begins at a multiple of 64 bytes of its slot. So a view into the flat vector is
aligned like a tensor of its own. Alignment matters because kernels, and so results, may depend on
it. The padding belongs to no parameter and is never selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Annotated, Any

ALIGNMENT_BYTES = 64
LARGEST = 1 << 48
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

_Name = Annotated[str, 300]
_Shape = Annotated[list[int], 16]
LayoutWire = tuple[
    Annotated[list[tuple[_Name, _Shape, _Shape, int, int]], 1 << 16],
    Annotated[list[tuple[_Name, _Name]], 64],
    Annotated[list[tuple[_Name, _Shape, _Name, bool, _Name]], 1 << 16],
]
"""Entries, slots and buffers, as they travel."""

RULES = ("mean", "max", "first", "equal")
"""How a buffer may be averaged: see `buffers.py`."""
RECOMPUTED, OWN = "recomputed", "own"
ALL_RULES = (*RULES, RECOMPUTED, OWN)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trainable parameter.

    `offset` is the index of its first value in the flat vector. Its `size` values lie there in
    memory order, which `stride` gives: it tells channels_last from contiguous models. `layer` is
    the index of the module that owns the parameter, in registration order. Only modules that
    directly own trainable parameters are counted.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    layer: int
    offset: int

    @property
    def size(self) -> int:
        """Number of scalars."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A vector laid out like the parameters: `param`, or a state tensor of the optimizer."""

    name: str
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return ITEM_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A buffer or a frozen parameter. It is never shuffled; the average treats it by its `rule`.

    If it is not `persistent`, it is not in the state dict, and each member keeps its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    persistent: bool
    rule: str

    def __str__(self) -> str:
        """The buffer's description in messages to people."""
        kept = "" if self.persistent else ", not persistent"
        return f"buffer {self.name}{list(self.shape)} ({self.dtype}, rule {self.rule}{kept})"


@dataclass(frozen=True)
class Layout:
    """A model's parameters in flat order (`entries`), the exchanged `slots`, and the `buffers`.

    `slots[0]` is `param`.
    """

    entries: tuple[Entry, ...]
    slots: tuple[Slot, ...]
    buffers: tuple[Buffer, ...] = ()

    @cached_property
    def size(self) -> int:
        """Length of the flat vector: a number of values, padding included."""
        last = self.entries[-1]
        return last.offset + last.size

    @property
    def bytes(self) -> int:
        """The size of all slots in bytes, padding included."""
        return self.size * self.scalar_bytes

    @cached_property
    def values(self) -> int:
        """d: the number of trainable scalars, padding excluded."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def layers(self) -> int:
        """L: the number of layers."""
        return 1 + max(entry.layer for entry in self.entries)

    @cached_property
    def scalar_bytes(self) -> int:
        """The bytes of one selected scalar, over all slots."""
        return sum(slot.item_bytes for slot in self.slots)

    def to_wire(self) -> LayoutWire:
        """Plain values for msgpack."""
        return (
            [(e.name, list(e.shape), list(e.stride), e.layer, e.offset) for e in self.entries],
            [(s.name, s.dtype) for s in self.slots],
            [(b.name, list(b.shape), b.dtype, b.persistent, b.rule) for b in self.buffers],
        )

    @classmethod
    def from_wire(cls, wire: Any) -> Layout:
        """Inverse of `to_wire`. Raises ValueError if `wire` is anything but a layout.

        `wire` may lack the buffers: a journal of an earlier version has none.
        """
        try:
            entries, slots, buffers = wire if len(wire) != 2 else (*wire, [])
            layout = cls(
                tuple(
                    Entry(
                        name=str(name),
                        shape=tuple(map(int, shape)),
                        stride=tuple(map(int, stride)),
                        layer=int(layer),
                        offset=int(offset),
                    )
                    for name, shape, stride, layer, offset in entries
                ),
                tuple(Slot(name=str(name), dtype=str(dtype)) for name, dtype in slots),
                tuple(
                    Buffer(
                        name=str(name),
                        shape=tuple(map(int, shape)),
                        dtype=str(dtype),
                        persistent=bool(persistent),
                        rule=str(rule),
                    )
                    for name, shape, dtype, persistent, rule in buffers
                ),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a layout: {error}") from None
        if not layout.entries or not layout.slots or layout.slots[0].name != "param":
            raise ValueError("not a layout: no parameters or no 'param' slot")
        if any(slot.dtype not in ITEM_BYTES for slot in layout.slots):
            raise ValueError(f"not a layout: dtypes must be among {', '.join(ITEM_BYTES)}")
        if layout.size >= LARGEST:
            raise ValueError(f"not a layout: {layout.size} values; expected less than {LARGEST}")
        if any(a.offset + a.size > b.offset for a, b in pairwise(layout.entries)):
            raise ValueError("not a layout: parameters overlap")
        if any(buffer.rule not in ALL_RULES for buffer in layout.buffers):
            raise ValueError(f"not a layout: rules must be among {', '.join(ALL_RULES)}")
        return layout

    def difference(self, other: Layout) -> str:
        """The first difference from `other`, in words; "" if there is none."""
        if self.slots != other.slots:
            here, there = (
                ", ".join(f"{s.name} {s.dtype}" for s in layout.slots) for layout in (self, other)
            )
            return f"slots [{here}] against [{there}]"
        for a, b in zip(self.entries, other.entries, strict=False):
            if a != b:
                return f"{_describe(a)} against {_describe(b)}"
        if len(self.entries) != len(other.entries):
            return f"{len(self.entries)} parameters against {len(other.entries)}"
        mine, theirs = ({b.name: b for b in layout.buffers} for layout in (self, other))
        for name in [*mine, *theirs]:
            here, there = (str(its.get(name, f"no buffer {name}")) for its in (mine, theirs))
            if here != there:
                return f"{here} against {there}"
        return ""


def _describe(entry: Entry) -> str:
    return f"{entry.name}{list(entry.shape)} (stride {list(entry.stride)}, layer {entry.layer})"


def aligned(offset: int, item_bytes: int) -> int:
    """The first index at or after `offset` that begins a 64-byte line.

    >>> aligned(17, item_bytes=4)
    32
    """
    step = ALIGNMENT_BYTES // item_bytes
    return -(-offset // step) * step
