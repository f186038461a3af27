"""The report of a finished run: accuracies, and bytes beside plan, theory and PAPA.

The functions read the content of summary.json and return tables. They need no torch, so that the
coordinator can print them.
"""

from __future__ import annotations

from collections import Counter
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from washp2p.protocol.ledger import Kind
from washp2p.runfolder.finished import differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from washp2p.runfolder.finished import FinishedRun

Summary = dict[str, Any]
Columns = tuple[list[str], list[list[str]]]
"""A header, and rows."""
OTHER = "`other` is state transfer, final average, REPAIR and surveys, headers included"
PLANNED = (Kind.EXCHANGE, Kind.REPAIR, Kind.CONSENSUS)
"""Kinds of messages whose number of bytes is known beforehand."""
FIGURES = 9
"""The least width of a column with amounts or percentages, in characters."""
SHORTFALL = 2.0
"""The report warns if the averaged model is more than this many points below the ensemble."""

_SHUFFLE = "shuffle more: raise --p (about tenfold crosses the phase transition), or train longer"
_AVERAGE = "average more often: lower --every, or train longer"
REMEDIES = {
    "none": "separately trained members do not average: use --method wash",
    "wash": _SHUFFLE,
    "wash-opt": _SHUFFLE,
    "sparta": "average more: raise --p, or train longer",
    "papa": "pull harder (lower --alpha or --every), begin alike (--init same), or train longer",
    "papa-all": _AVERAGE,
    "dart": _AVERAGE,
    "papa-2": _AVERAGE,
}
_RING = "reduced and shared peer to peer, what an ideal ring all-reduce would send"
_SHUFFLED = "(N-1)/N * sum p_l d_l for this model's layers"
_MEANS = f"2 (N-1)/N d at each mean, {_RING}"
FORMULAS = {
    "wash": (_SHUFFLED, "By the paper's rule for equal layers"),
    "wash-opt": (f"{_SHUFFLED}, for all slots", "By the paper's rule for equal layers"),
    "sparta": (f"2 (N-1)/N * sum p_l d_l, {_RING}", "Counting each selected value once"),
    "papa": (f"2 (N-1)/N d every T steps, {_RING}", "As the paper counts, d/T,"),
    "papa-all": (_MEANS, "Counting each parameter once"),
    "dart": (_MEANS, "Counting each parameter once"),
    "papa-2": ("2 (N-1)/N d at each mean of pairs, sent directly", "Counting each parameter once"),
}
"""By method: the formula of its theoretical payload, and how its paper counts the payload."""

UNITS = ("B", "kB", "MB", "GB", "TB")


def plain(text: str) -> str:
    """`text` with an escape for each unprintable character, so that none controls a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def amount(count: float, digits: int = 3) -> str:
    """Bytes as text for people, in powers of 1,000, with `digits` significant digits.

    >>> amount(1234567), amount(999.9, digits=4)
    ('1.23 MB', '999.9 B')
    """
    power = 0
    while round(count, digits) >= 1000 - 0.5 * 10 ** (3 - digits) and power < len(UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:.{digits}g} {UNITS[power]}"


def accuracy_table(summary: Summary) -> Table | None:
    """The table of test accuracies as in the papers; None if nothing was evaluated."""
    accuracy = summary["accuracy"]
    if accuracy["averaged"] is None:
        return None
    members = accuracy["members"]
    table = _table("test accuracy", "model", "%")
    for member, value in zip(accuracy["over"], members, strict=True):
        table.add_row(f"member {member}", f"{value:.2f}")
    table.add_section()
    table.add_row("mean member", f"{sum(members) / len(members):.2f}")
    table.add_row("best member", f"{max(members):.2f}")
    table.add_row("worst member", f"{min(members):.2f}")
    table.add_section()
    for name, key in (
        ("Ensemble", "ensemble"),
        ("Averaged", "averaged"),
        ("GreedySoup", "greedy_soup"),
    ):
        table.add_row(f"[bold]{name}", f"[bold]{accuracy[key]:.2f}")
    return table


def warning(summary: Summary) -> str:
    """The shortfall of the averaged model and a remedy; "" if it is at most SHORTFALL."""
    accuracy = summary["accuracy"]
    if accuracy["averaged"] is None or accuracy["ensemble"] - accuracy["averaged"] <= SHORTFALL:
        return ""
    gap = accuracy["ensemble"] - accuracy["averaged"]
    remedy = REMEDIES.get(summary["method"], "train longer")
    return f"the averaged model is {gap:.1f} points short of the ensemble; {remedy}"


def notices(summary: Summary) -> list[str]:
    """The notices of all members: each text once, with the members that gave it."""
    who: dict[str, list[int]] = {}
    for notice in summary.get("notices", []):
        who.setdefault(notice["text"], []).append(notice["member"])
    return [f"member {', '.join(map(str, them))}: {text}" for text, them in who.items()]


def per_worker(summary: Summary, key: str) -> float:
    """The mean over workers of the value under `key` in their rows of summary.json."""
    values: list[float] = [row[key] for row in summary["bytes"]]
    return mean(values)


def sent_for(row: dict[str, Any], kinds: Sequence[Kind]) -> int:
    """The bytes that a worker sent in messages of these `kinds`, headers included.

    `row` is the worker's row in summary.json.
    """
    rows = (link for link in row["links"] if link["kind"] in kinds)
    return sum(link["payload"] + link["header"] for link in rows)


def sent(summary: Summary) -> Columns:
    """The table of bytes sent by each worker, beside plan and theory."""
    rows = []
    for row in summary["bytes"]:
        other = sent_for(row, [kind for kind in Kind if kind is not Kind.EXCHANGE])
        sizes = (row["payload"], row["expected_payload"], row["theory"], row["header"])
        messages = f"{row['messages']:,}"
        rest = (other, row["control"])
        rows.append([str(row["member"]), *map(_amount, sizes), messages, *map(_amount, rest)])
    header = ["member", "payload", "plan", "theory", "header", "messages", "other", "control"]
    return header, rows


def comparison(summary: Summary) -> str:
    """A text that compares the payload sent with theory and with PAPA's payload."""
    row = summary["bytes"][0]
    sent, theory = per_worker(summary, "payload"), per_worker(summary, "theory")
    text = (
        f"PAPA (all {summary['parameters']:,} parameters every 10 steps) would have sent "
        f"{_amount(row['papa'])} per worker, {_amount(row['papa_all_reduce'])} as a ring all-reduce"
    )
    if not sent or not theory:
        return text
    formula, count = FORMULAS.get(summary["method"], ("the method's own", "By its paper's count"))
    return (
        f"theory is {formula}; {sent / theory:.3f} of it was sent. {count} it would be "
        f"{_amount(row['paper'])}. "
        f"{text}: {_times(row['papa'] / sent)} and {_times(row['papa_all_reduce'] / sent)} times "
        "as much"
    )


def surveyed(summary: Summary) -> float:
    """The mean number of bytes that a worker sent for surveys, headers included."""
    return mean(sent_for(row, [Kind.CONSENSUS]) for row in summary["bytes"])


def pace(summary: Summary) -> Columns:
    """The table of each worker's speed, and of the values it received.

    `late by` is the bound on lateness that the worker ended with. `lost` counts values never
    applied.
    """
    rows = [
        [
            str(row["member"]),
            str(row["steps"]),
            f"{row['steps'] / row['seconds']:.1f}" if row["seconds"] else "",
            f"{row['waited']:.2f}",
            row["max_delay"],
            f"{row['applied_values']:,}",
            f"{row['expired_values']:,}",
        ]
        for row in summary["bytes"]
    ]
    return ["member", "steps", "steps/s", "waited, s", "late by", "applied", "lost"], rows


def losses(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Lost values by reason, over the `rows` of all members, largest first."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.get("lost", {}))
    return dict(total.most_common())


def links(summary: Summary) -> Columns:
    """The table of bytes sent, by worker, peer, kind and wire."""
    rows = [
        [
            str(row["member"]),
            str(link["peer"]),
            link["kind"],
            link["wire"],
            f"{link['payload']:,}",
            f"{link['expected']:,}" if link["kind"] in PLANNED else "",
            f"{link['header']:,}",
            f"{link['messages']:,}",
        ]
        for row in summary["bytes"]
        for link in row["links"]
    ]
    return ["from", "to", "kind", "by", "payload", "plan", "header", "messages"], rows


def links_table(summary: Summary) -> Table:
    """Bytes by worker, peer, kind and wire, as a table on a terminal."""
    return filled("bytes by peer and kind", links(summary))


def runs_table(runs: Sequence[FinishedRun]) -> Table:
    """Several runs side by side: settings that differ, accuracies, bytes, values lost and speed."""
    table = _table("runs", "", *(escape(plain(run.name)) for run in runs))
    for column in table.columns[1:]:
        column.no_wrap, column.overflow, column.min_width = False, "fold", FIGURES

    def row(name: str, values: Iterable[object]) -> None:
        table.add_row(name, *(escape(plain(str(value))) for value in values))

    for name, values in differences(runs).items():
        row(name, values)
    table.add_section()
    summaries = [run.summary for run in runs]
    accuracies = [summary["accuracy"] for summary in summaries]
    for name, key in (
        ("Ensemble", "ensemble"),
        ("Averaged", "averaged"),
        ("GreedySoup", "greedy_soup"),
    ):
        row(name, ["" if a[key] is None else f"{a[key]:.2f}" for a in accuracies])
    table.add_section()
    for name, key in (("payload", "payload"), ("theory", "theory"), ("PAPA", "papa")):
        row(name, [_amount(per_worker(summary, key)) for summary in summaries])
    row("values lost", [f"{summary['lost_values']:,}" for summary in summaries])
    row("rounds/s", [f"{summary['rounds_per_second']:.1f}" for summary in summaries])
    return table


def final_tables(summary: Summary) -> Iterator[Table | str]:
    """The tables and lines that end a run's output."""
    table = accuracy_table(summary)
    if table is not None:
        yield table
    yield filled("pace", pace(summary))
    yield filled("bytes sent per worker", sent(summary))
    yield comparison(summary)
    if measuring := surveyed(summary):
        yield f"measuring the distance to consensus took {_amount(measuring)} per worker"
    for told in notices(summary):
        yield f"[yellow]{escape(plain(told))}"
    for gone in summary.get("departed", []):
        what = f"member {gone['member']} ({gone['host']}) {gone['reason']}"
        yield escape(plain(f"{what}; the roster is without it from round {gone['round']} on"))
    if lost := losses(summary["bytes"]):
        told = ", ".join(f"{count:,} ({why})" for why, count in lost.items())
        yield escape(plain(f"values lost: {told}"))
    seconds = f"{summary['rounds']} rounds in {summary['seconds']:.1f} s"
    yield f"{seconds} ({summary['rounds_per_second']:.1f} rounds/s)"
    if text := warning(summary):
        yield f"[yellow]warning: {text}"


def filled(title: str, columns: Columns) -> Table:
    """A terminal table with these columns."""
    header, rows = columns
    table = _table(title, *header)
    for row in rows:
        table.add_row(*(escape(plain(cell)) for cell in row))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _amount(count: float) -> str:
    return amount(count, digits=4)


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2g}"
