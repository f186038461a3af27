"""Records: dataclasses that travel as msgpack arrays and are checked value by value on arrival.

Both planes use them: `frames.py` for data headers, `control.py` for control messages. A field's
type is its schema: decoding refuses a value that does not fit it, at any depth. A sender cannot
choose code to run: there is no pickle, and a codec refuses every kind of record that it was not
made with.
"""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgpack

from washp2p.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Check = Callable[[Any], Any]

R = TypeVar("R")

Json = Annotated[Any, "json"]
"""In a field's type: anything that JSON has, at most JSON_DEPTH deep."""

JSON_DEPTH = 16


class Codec(Generic[R]):
    """Encodes and decodes records as arrays [*prefix, kind number, *fields].

    `kinds` are dataclasses; a kind's number is its index in `kinds`. A record of more than `limit`
    bytes is refused. A field is an int (unsigned, 64 bits), str, bytes, bool, float (finite),
    list[T], tuple[A, B] (an array of exactly these items), dict[str, T], or, within a dict, Json. A
    field of type Annotated[T, n] has at most n items.
    """

    def __init__(self, kinds: Sequence[type[R]], *, limit: int, prefix: Sequence[int] = ()) -> None:
        self.kinds = list(kinds)
        self._limit = limit
        self._prefix = list(prefix)
        self._fields: list[list[str]] = []
        self._types: list[tuple[type, ...]] = []
        self._integers: list[list[int]] = []
        self._deep: list[list[tuple[int, Check]]] = []
        for kind in kinds:
            hints = get_type_hints(kind, include_extras=True)
            names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # dataclasses
            types = [_on_the_wire(hints[name]) for name in names]
            self._fields.append(names)
            self._types.append(tuple(types))
            self._integers.append([place for place, type_ in enumerate(types) if type_ is int])
            self._deep.append(
                [
                    (place, _check(hints[name]))
                    for place, name in enumerate(names)
                    if hints[name] not in {int, str, bytes, bool}
                ]
            )

    def encode(self, record: R) -> bytes:
        """The bytes of `record`, as they travel."""
        number = self.kinds.index(type(record))
        values = [getattr(record, name) for name in self._fields[number]]
        packed: bytes = msgpack.packb([*self._prefix, number, *values])
        return packed

    def decode(self, data: bytes | memoryview) -> R:
        """Inverse of `encode`. Raises ProtocolError on any other data, and no other exception."""
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
            raise ProtocolError(f"record version {_shown(values[:head])}; expected {self._prefix}")
        number, *items = values[head:]
        if type(number) is not int or not 0 <= number < len(self.kinds):
            raise ProtocolError(
                f"record kind {_shown(number)}; expected 0 to {len(self.kinds) - 1}"
            )
        kind = self.kinds[number]
        if tuple(map(type, items)) != self._types[number] or (
            min([items[place] for place in self._integers[number]], default=0) < 0
        ):
            raise ProtocolError(f"fields of {kind.__name__} are {_shown(items)}")
        try:
            for place, check in self._deep[number]:
                items[place] = check(items[place])
        except ValueError as error:
            what = f"{kind.__name__}.{self._fields[number][place]}"
            raise ProtocolError(f"{what} {error}") from None
        return kind(*items)


def _shown(value: Any) -> str:
    """`value` as a short text for an error message. It may be of any type, depth and size."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_leaf, value[:12])) + ", ..." * (len(value) > 12) + "]"
    return _leaf(value)


def _leaf(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:40])
    return type(value).__name__


def _on_the_wire(hint: Any) -> type:
    """The type that a field has when it comes out of msgpack."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    plain: type = get_origin(hint) or hint
    return list if plain is tuple else plain


def _check(hint: Any) -> Check:
    """A function that checks a value against the type `hint`.

    It returns the value, or raises ValueError.
    """
    if hint == Json:
        return _json
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _short(_check(arguments[0]), arguments[1])
    if origin is list:
        return _list(_check(arguments[0]))
    if origin is tuple:
        return _tuple([_check(argument) for argument in arguments])
    if origin is dict:
        return _dict(_check(arguments[1]))
    assert hint in {int, str, bytes, bool, float}
    return _scalar(hint)


def _scalar(kind: type) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not kind or (type(value) is int and value < 0):
            raise ValueError(f"has {_shown(value)}; expected {kind.__name__}")
        if type(value) is float and not isfinite(value):
            raise ValueError(f"is {value}; expected a number")
        return value

    return check


def _short(inner: Check, limit: int) -> Check:
    def check(value: Any) -> Any:
        value = inner(value)
        if len(value) > limit:
            raise ValueError(f"has {len(value)} items; expected at most {limit}")
        return value

    return check


def _list(inner: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError(f"has {_shown(value)}; expected an array")
        return [inner(item) for item in value]

    return check


def _tuple(inner: Sequence[Check]) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(inner):
            raise ValueError(f"has {_shown(value)}; expected an array of {len(inner)}")
        return tuple(check(item) for check, item in zip(inner, value, strict=True))

    return check


def _dict(inner: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not dict or not all(type(key) is str for key in value):
            raise ValueError(f"has {_shown(value)}; expected a map with names")
        return {key: inner(item) for key, item in value.items()}

    return check


def _json(value: Any, depth: int = JSON_DEPTH) -> Any:
    if depth and type(value) is list:
        return [_json(item, depth - 1) for item in value]
    if depth and type(value) is dict and all(type(key) is str for key in value):
        return {key: _json(item, depth - 1) for key, item in value.items()}
    if value is None or type(value) in {bool, int, float, str}:
        return value
    raise ValueError(f"has {_shown(value)}; expected what JSON has, {JSON_DEPTH} deep at most")
