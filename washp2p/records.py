"""Records: a dataclass as a msgpack array, checked field by field when it comes in.

Both planes use it: `frames.py` for data headers, `control.py` for control messages. No pickle, no
code chosen by the sender: a record is one of the kinds its codec was made with, or refused.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Generic, TypeVar, get_origin, get_type_hints

import msgpack

from washp2p.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

R = TypeVar("R")


class Codec(Generic[R]):
    """Encodes records of `kinds` as [*prefix, kind number, fields...], `limit` bytes at most.

    Kinds are dataclasses; a kind's number is its place in `kinds`. Integers are unsigned, 64 bits.
    """

    def __init__(self, kinds: Sequence[type[R]], *, limit: int, prefix: Sequence[int] = ()) -> None:
        self.kinds = list(kinds)
        self._limit = limit
        self._prefix = list(prefix)
        self._fields: list[list[str]] = []
        self._types: list[tuple[type, ...]] = []
        self._integers: list[list[int]] = []
        for kind in kinds:
            hints = get_type_hints(kind)
            names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # dataclasses
            types = [get_origin(hints[name]) or hints[name] for name in names]
            self._fields.append(names)
            self._types.append(tuple(types))
            self._integers.append([place for place, type_ in enumerate(types) if type_ is int])

    def encode(self, record: R) -> bytes:
        """The record as it travels."""
        number = self.kinds.index(type(record))
        values = [getattr(record, name) for name in self._fields[number]]
        packed: bytes = msgpack.packb([*self._prefix, number, *values])
        return packed

    def decode(self, data: bytes | memoryview) -> R:
        """Inverse of `encode`. Raises ProtocolError on anything else; never anything else."""
        if len(data) > self._limit:
            raise ProtocolError(f"record of {len(data)} bytes; expected at most {self._limit}")
        try:
            values = msgpack.unpackb(data)
        except Exception as error:  # msgpack raises its own and others, by content
            raise ProtocolError(f"record is not msgpack: {type(error).__name__}") from None
        head = len(self._prefix)
        if not isinstance(values, list) or len(values) <= head:
            raise ProtocolError(f"record is not an array of at least {head + 1} items")
        if values[:head] != self._prefix:
            raise ProtocolError(f"record version {values[:head]!r:.40}; expected {self._prefix}")
        number, *items = values[head:]
        if type(number) is not int or not 0 <= number < len(self.kinds):
            raise ProtocolError(f"record kind {number!r:.40}; expected 0 to {len(self.kinds) - 1}")
        kind = self.kinds[number]
        if tuple(map(type, items)) != self._types[number] or (
            min([items[place] for place in self._integers[number]], default=0) < 0
        ):
            raise ProtocolError(f"fields of {kind.__name__} are {items!r:.200}")
        return kind(*items)
