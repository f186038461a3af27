"""Records: a dataclass as a msgpack array, checked field by field when it comes in.

Both planes use it: `frames.py` for data headers, `control.py` for control messages. No pickle, no
code chosen by the sender: a record is one of the kinds its codec was made with, or refused.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_origin, get_type_hints

import msgpack

from washp2p.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

R = TypeVar("R")
_U64 = (1 << 64) - 1


class Codec(Generic[R]):
    """Encodes records of `kinds` as [*prefix, kind number, fields...], `limit` bytes at most.

    Kinds are dataclasses; a kind's number is its place in `kinds`. Integers are unsigned, 64 bits.
    """

    def __init__(self, kinds: Sequence[type[R]], *, limit: int, prefix: Sequence[int] = ()) -> None:
        self._kinds = list(kinds)
        self._limit = limit
        self._prefix = list(prefix)
        self._fields: list[dict[str, Any]] = []
        for kind in kinds:
            hints = get_type_hints(kind)
            names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # dataclasses
            self._fields.append({name: get_origin(hints[name]) or hints[name] for name in names})

    def encode(self, record: R) -> bytes:
        """The record as it travels."""
        number = self._kinds.index(type(record))
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
        if type(number) is not int or not 0 <= number < len(self._kinds):
            raise ProtocolError(f"record kind {number!r:.40}; expected 0 to {len(self._kinds) - 1}")
        kind, expected = self._kinds[number], self._fields[number].values()
        if len(items) != len(expected) or not all(map(_fits, items, expected)):
            raise ProtocolError(f"fields of {kind.__name__} are {items!r:.200}")
        return kind(*items)


def _fits(value: Any, expected: type) -> bool:
    if type(value) is int:
        return expected is int and 0 <= value <= _U64
    return type(value) is expected
