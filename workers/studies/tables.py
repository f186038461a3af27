"""Tables of studies: mean and spread over seeds, as Markdown and CSV."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Value:
    """A quantity with one sample for each seed.

    >>> Value([97.5, 98.5]).text, Value([97.5]).text, Value([]).text
    ('98.00 ± 0.71', '97.50', '')
    """

    samples: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over all samples."""
        return mean(self.samples)

    @property
    def deviation(self) -> float:
        """The standard deviation over samples (n - 1); 0 for a single sample."""
        return stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def text(self) -> str:
        """The value as it is printed."""
        if not self.samples:
            return ""
        alone = len(self.samples) == 1
        return f"{self.mean:.2f}" if alone else f"{self.mean:.2f} ± {self.deviation:.2f}"


Cell = str | Value


@dataclass(frozen=True)
class Table:
    """A table: a header, and rows of words and values."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header)]
        lines += [[_text(cell) for cell in row] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n"

    @property
    def columns(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text."""
        return list(self.header), [[_text(cell) for cell in row] for row in self.rows]

    @property
    def groups(self) -> dict[str, dict[str, Value]]:
        """The values of each row by column, keyed by the words before the row's first value.

        Rows without values are left out.
        """
        found: dict[str, dict[str, Value]] = {}
        for row in self.rows:
            values = {
                name: cell
                for name, cell in zip(self.header, row, strict=True)
                if isinstance(cell, Value) and cell.samples
            }
            if values:
                words = takewhile(lambda cell: isinstance(cell, str), row)
                found[", ".join(filter(None, map(_text, words)))] = values
        return found

    def records(self) -> list[list[str]]:
        """Header and rows for CSV. A value becomes its mean, its deviation and its number of
        samples.
        """
        valued = [
            any(isinstance(row[k], Value) for row in self.rows) for k in range(len(self.header))
        ]
        header: list[str] = []
        for name, is_value in zip(self.header, valued, strict=True):
            header += [name, f"{name} sd", f"{name} n"] if is_value else [name]
        records = [header]
        for row in self.rows:
            record: list[str] = []
            for cell, is_value in zip(row, valued, strict=True):
                if isinstance(cell, Value) and cell.samples:
                    record += [f"{cell.mean:.6g}", f"{cell.deviation:.6g}", str(len(cell.samples))]
                elif is_value:
                    record += [_text(cell), "", ""]
                else:
                    record.append(_text(cell))
            records.append(record)
        return records


@dataclass
class Report:
    """What a study has found."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    """Names of picture files beside the report."""

    def write(self, folder: Path, command: str) -> Path:
        """Write NAME.md and NAME.csv (NAME-2.csv, ...) into `folder`. Returns the path of
        NAME.md.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts = [f"# {self.title}\n", f"Command: `{command}`\n"]
        parts += [table.markdown for table in self.tables]
        parts += [f"{note}\n" for note in self.notes]
        parts += [f"![{name}]({name})\n" for name in self.pictures]
        place = folder / f"{self.name}.md"
        place.write_text("\n".join(parts))
        for number, table in enumerate(self.tables, 1):
            more = f"-{number}" if number > 1 else ""
            with (folder / f"{self.name}{more}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(table.records())
        return place


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Value) else cell
