"""A running population on a terminal: a table of members, and the run's progress.

The functions show the values of a View (docs/protocol.md). They need no torch.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from washp2p.reporting.report import amount, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

View = dict[str, Any]


def headline(view: View) -> str:
    """The run's progress, in a line."""
    rounds = f"{view['round']}/{view['rounds']}" if view["rounds"] else str(view["round"])
    parts = [
        f"{view['run']}: {view['state']}",
        f"round {rounds}",
        f"roster {view['generation']}",
        f"{view['rounds_per_second']:.1f} rounds/s",
    ]
    if view["seconds_left"] is not None and view["state"] == "training":
        parts.append(f"{timedelta(seconds=round(view['seconds_left']))} left")
    if view["distance"] is not None:
        parts.append(f"distance {view['distance']:.3g}")
    return plain(", ".join(parts))


def members_table(view: View) -> Table:
    """Each member's state, speed, bytes sent and accuracy."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "host", "state"):
        table.add_column(column, no_wrap=True, min_width=2)
    for column in ("round", "1/s", "delay", "waits", "sends/s", "lost", "loss", "held out"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in view["members"]:
        waits = row["waited"] / row["seconds"] if row.get("seconds") else None
        table.add_row(
            str(row["member"]),
            escape(plain(row["host"])),
            escape(plain(row["state"])),
            str(row["round"]),
            f"{row['rounds_per_second']:.1f}",
            escape(plain(str(row.get("max_delay", "")))),
            "" if waits is None else f"{100 * waits:.0f} %",
            amount(row["bytes_per_second"]),
            str(row.get("lost", "")),
            _number(row["loss"], ".4f"),
            _number(row["held_out"], ".2f"),
        )
    return table


def events(view: View, last: int) -> list[str]:
    """The `last` newest events, a line each."""
    return [plain(event["text"]) for event in view["events"][-last:]] if last else []


def render(view: View, last: int = 5) -> RenderableType:
    """The headline, the table, and the `last` events."""
    return Group(
        Text(headline(view)),
        members_table(view),
        *(Text(text, style="dim") for text in events(view, last)),
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
