"""Helpers for sections of the configuration: dataclasses whose fields have help and limits."""

from __future__ import annotations

from dataclasses import MISSING, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from dataclasses import Field


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    limits: tuple[float, float] | None = None,
    moment: bool = False,
    key: str = "",
) -> Any:
    """Make a field of a section.

    A `default` of MISSING makes it required. `text` is its help text. `choices` are the only values
    it may have. `limits` are its smallest and largest value. With `moment` its value is an epoch or
    a fraction of the run. `key` is its name in files and as a flag, if that differs from the
    field's name.
    """
    metadata = {"help": text, "choices": choices, "limits": limits, "moment": moment, "key": key}
    return field(default=default, metadata=metadata)


def key_of(option: Field[Any]) -> str:
    """The name of a field in files and in messages. `flag` turns it into a command-line flag."""
    return option.metadata["key"] or option.name


def flag(key: str) -> str:
    """The flag of an option, without dashes before it."""
    return key.rstrip("_").replace("_", "-")


def required(option: Field[Any]) -> bool:
    """Whether the field has no default."""
    return option.default is MISSING


def check(section: Any) -> None:
    """Raise UsageError on the first field of a section that is outside its choices or limits."""
    for each in fields(section):
        if not each.metadata:
            continue
        key, value = key_of(each), getattr(section, each.name)
        if each.metadata["choices"]:
            expect_known(key, value, each.metadata["choices"])
        if each.metadata["limits"]:
            expect_within(key, value, *each.metadata["limits"])
        if each.metadata["moment"]:
            _expect_moment(key, value)


def expect_within(key: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless `low` <= value <= `high`."""
    if not low <= value <= high:  # also catches NaN
        raise UsageError(f"--{flag(key)} is {value}; expected {low} to {high}")


def expect_known(key: str, value: object, known: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `known`."""
    if value not in known:
        raise UsageError(f"--{flag(key)} is {value!r}; expected one of {', '.join(known)}")


def _expect_moment(key: str, value: str) -> None:
    number = value.replace(".", "", 1)
    if not (number.isascii() and number.isdecimal() and len(number) < 10) or (
        "." in value and Fraction(value) > 1
    ):
        raise UsageError(
            f"--{flag(key)} is {value!r:.40}; expected a number of epochs, or a fraction from "
            "0.0 to 1.0"
        )
