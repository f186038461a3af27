"""The coordinator's output: a table on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live

from coordinator.machine.commands import What
from washp2p.reporting.report import final_tables, plain
from washp2p.reporting.status_table import render

if TYPE_CHECKING:
    from coordinator.machine.commands import Event
    from washp2p.runfolder.process_log import Log


class Display:
    """Shows events and the state of the run. A context manager."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.console = Console(highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether `show` has a terminal to draw on."""
        return self.console.is_terminal and not self._log.for_programs

    def event(self, event: Event) -> None:
        """Print the event as a line that stays, unlike what `show` draws."""
        if self._log.for_programs:
            self._log.event(event.text, event.what, member=event.member)
        else:
            self._say(event.text)

    def show(self, view: dict[str, Any]) -> None:
        """Draw the state of the run in place of the former one."""
        self._live.update(render(view, last=0), refresh=True)

    def metrics(self, values: dict[str, Any]) -> None:
        """Print a member's line of metrics, unless a table shows it."""
        if self.is_live:
            return
        text = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
            if key not in {"member", "round"}
        )
        line = f"member {values.get('member')}  round {values.get('round')}  {text}"
        if self._log.for_programs:
            self._log.event(line, What.METRICS, member=values.get("member"), values=values)
        else:
            self._say(line)

    def end(self, summary: dict[str, Any]) -> None:
        """Print the report of a finished run."""
        self._live.stop()
        if self._log.for_programs:
            told = {key: summary[key] for key in ("rounds", "seconds", "accuracy", "lost_values")}
            self._log.event("all members finished", What.ENDED, **told)
            return
        for table in final_tables(summary):
            self.console.print(table)

    def _say(self, text: str) -> None:
        self.console.print(plain(text), markup=False, soft_wrap=True)
