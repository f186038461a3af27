"""What the coordinator shows while a run goes on: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live

from washp2p.report import plain
from washp2p.view import render

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


class Display:
    """Shows events, and how the run goes. A context manager."""

    def __init__(self) -> None:
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
        """Whether there is somebody to `show` a view to."""
        return self.console.is_terminal

    def event(self, text: str) -> None:
        """One line that stays."""
        self.console.print(plain(text), markup=False, soft_wrap=True)

    def show(self, view: dict[str, Any]) -> None:
        """How the run goes now, in the place of what was shown before."""
        self._live.update(render(view, last=0), refresh=True)

    def metrics(self, values: dict[str, Any]) -> None:
        """One member's epoch, where no table shows it."""
        if not self.is_live:
            text = "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in values.items()
                if key not in {"member", "round"}
            )
            self.event(f"member {values.get('member')}  round {values.get('round')}  {text}")

    def tables(self, tables: Iterable[RenderableType]) -> None:
        """What a run ends with."""
        self._live.stop()
        for table in tables:
            self.console.print(table)
