"""TensorBoard's scalars: a series for each member, and one for the population, by round.

Needs the extra `tensorboard`, which brings NumPy; needs neither torch nor TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

POPULATION = "population"
LAST_STEP = 1 << 63
LARGEST = 3e38
"""TensorBoard's files have no room for a number of this magnitude or more."""
OF_MEMBERS = (
    "rounds_per_second",
    "bytes_per_second",
    "bytes",
    "waited",
    "planning",
    "late",
    "lost",
    "refused",
)


class Scalars:
    """Writes event files below `folder`. Raises UsageError if tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise UsageError(
                "--tensorboard needs tensorboard; pip install tensorboard (or this project's extra "
                "`tensorboard`)"
            ) from None
        self._writer = Writer
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def metrics(self, values: dict[str, Any]) -> None:
        """Write all numbers in a member's line of metrics."""
        values = dict(values)
        member, number = values.pop("member"), values.pop("round", None)
        if type(number) is int and 0 <= number < LAST_STEP:
            self._add(f"member-{member}", "training", values, number)

    def measured(self, values: dict[str, Any]) -> None:
        """Write a survey's result."""
        found = {"distance": values["distance"]}
        found |= {f"quarter {k}": each for k, each in enumerate(values["quarters"], 1)}
        self._add(POPULATION, "consensus", found, values["round"])

    def point(self, point: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Write a point of the population's curves, and each member's row."""
        values = dict(point)
        self._add(POPULATION, "population", values, values.pop("round"))
        here = {POPULATION, *(f"member-{row['member']}" for row in rows)}
        for gone in self._writers.keys() - here:
            self._writers.pop(gone).close()
        for row in rows:
            told = {key: row[key] for key in OF_MEMBERS if key in row}
            self._add(f"member-{row['member']}", "exchange", told, row["round"])

    def close(self) -> None:
        """Flush and close all files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, series: str, group: str, values: dict[str, Any], step: int) -> None:
        if series not in self._writers:
            self._writers[series] = self._writer(str(self._folder / series))
        for key, value in values.items():
            if isinstance(value, int | float) and abs(value) < LARGEST:
                self._writers[series].add_scalar(f"{group}/{key}", float(value), step=step)
