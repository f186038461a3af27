"""What the coordinator shows while a run goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from washp2p.report import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.progress import TaskID
    from rich.table import Table

    from coordinator.members import Member


class Display:
    """Shows events, each member's rounds, and each epoch's metrics. A context manager."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def event(self, text: str) -> None:
        """One line that stays."""
        self.console.print(plain(text), markup=False, soft_wrap=True)

    def progress(self, members: Iterable[Member], total: int) -> None:
        """Move the bars."""
        for member in members:
            if member.id not in self._tasks:
                self._tasks[member.id] = self._bars.add_task(f"member {member.id}", metrics="")
            self._bars.update(self._tasks[member.id], completed=member.rounds, total=total or None)

    def metrics(self, values: dict[str, Any]) -> None:
        """One member's epoch."""
        text = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
            if key not in {"member", "round"}
        )
        if self.console.is_terminal and values.get("member") in self._tasks:
            self._bars.update(self._tasks[values["member"]], metrics=escape(plain(text)))
        elif not self.console.is_terminal:
            self.event(f"member {values.get('member')}  round {values.get('round')}  {text}")

    def tables(self, tables: Iterable[Table | str]) -> None:
        """What a run ends with."""
        self._bars.stop()
        for table in tables:
            self.console.print(table)
