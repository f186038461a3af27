"""Figures of finished runs, as SVG for a paper. Needs matplotlib (extra `report`).

Each function draws one figure of one or several runs, and returns its SVG text. It returns None if
the runs have nothing to show in it. The functions write no files and no HTML.
"""

from __future__ import annotations

import io
from functools import wraps
from statistics import mean
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from washp2p.protocol.ledger import Kind
from washp2p.reporting.report import amount, losses, per_worker, sent_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from washp2p.runfolder.finished import FinishedRun

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""The palette of Okabe and Ito: everyone can tell its colours apart, also on paper."""
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "washp2p",
}
LEGEND = 12
"""A figure with more names than this has no legend."""
LIVES = 100
"""Members that `lives` draws, at most, and that `kinds` labels."""
LABELLED = 12
"""A matrix of more members has no numbers in its cells."""


P = ParamSpec("P")
R = TypeVar("R")


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate `draw` to use this module's style, whatever the caller's style is."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def accuracy(runs: Sequence[FinishedRun]) -> str | None:
    """Held-out accuracy over rounds: each member's if there is one run, else each run's mean."""
    curves = [(run.name, run.curves("held_out")) for run in runs]
    if not any(members for _, members in curves):
        return None
    figure, axes = _figure()
    for number, (name, members) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        if len(runs) == 1:
            for points in members.values():
                axes.plot(*zip(*points, strict=True), color=COLOURS[5], alpha=0.6, linewidth=0.9)
            axes.plot([], [], color=COLOURS[5], alpha=0.6, linewidth=0.9, label="members")
        if centre := _mean_curve(list(members.values())):
            label = "mean of members" if len(runs) == 1 else name
            axes.plot(*zip(*centre, strict=True), color=colour, label=label)
    _finish(axes, "round", "held-out accuracy, %")
    return _svg(figure)


@_styled
def distance(runs: Sequence[FinishedRun]) -> str | None:
    """Distance to consensus over rounds."""
    found = [(run.name, _defined(run.population, "distance")) for run in runs]
    if not any(len(points) > 1 for _, points in found):
        return None
    figure, axes = _figure()
    for number, (name, points) in enumerate(found):
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_ylim(bottom=0)
    _finish(axes, "round", "distance to consensus", legend=len(runs) > 1)
    return _svg(figure)


@_styled
def volume(runs: Sequence[FinishedRun]) -> str:
    """The mean payload that a worker sent in exchanges, beside the theory's and PAPA's."""
    bars = []
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for label, key in (
            ("sent", "payload"),
            ("theory, this model's layers", "theory"),
            ("theory, equal layers (the paper's)", "paper"),
            ("PAPA, all parameters every 10 steps", "papa"),
            ("PAPA, as a ring all-reduce", "papa_all_reduce"),
        ):
            bars.append((prefix + label, per_worker(run.summary, key), key))
    figure, axes = _figure(height=0.8 + 0.27 * len(bars))
    shades = {"payload": COLOURS[0], "theory": COLOURS[5], "paper": COLOURS[5]}
    names = [name for name, _, _ in bars][::-1]
    values = [value for _, value, _ in bars][::-1]
    drawn = axes.barh(
        range(len(bars)), values, color=[shades.get(key, COLOURS[1]) for *_, key in bars[::-1]]
    )
    axes.set_yticks(range(len(bars)), names)
    axes.bar_label(drawn, [amount(value) for value in values], padding=3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    _finish(axes, "payload of one worker", "", legend=False)
    return _svg(figure)


@_styled
def matrix(run: FinishedRun) -> str | None:
    """Bytes that each member sent to each other one, for all purposes; None if there are none."""
    sent: dict[tuple[int, int], int] = {}
    for row in run.summary["bytes"]:
        for link in row["links"]:
            pair = row["member"], link["peer"]
            sent[pair] = sent.get(pair, 0) + link["payload"] + link["header"]
    members = sorted({member for pair in sent for member in pair})
    if not sent:
        return None
    table = [[sent.get((a, b), 0) for b in members] for a in members]
    size = min(6.5, 1.6 + 0.6 * len(members))
    figure, axes = _figure(width=size, height=size * 0.85)
    most = max(map(max, table))
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=1.3 * most)
    places = range(len(members))
    if len(members) <= LABELLED:
        for y, row_ in enumerate(table):
            for x, count in enumerate(row_):
                if count:
                    colour = "white" if count > 0.7 * most else "black"
                    axes.text(x, y, amount(count), ha="center", va="center", color=colour, size=7)
        axes.set_xticks(range(len(members)))
        axes.set_yticks(range(len(members)))
    named = FuncFormatter(lambda at, _: str(members[int(at)]) if at in places else "")
    axes.xaxis.set_major_formatter(named)
    axes.yaxis.set_major_formatter(named)
    axes.grid(visible=False)
    form = FuncFormatter(lambda value, _: amount(value))
    figure.colorbar(image, ax=axes, format=form, shrink=0.8)
    _finish(axes, "to member", "from member", legend=False)
    return _svg(figure)


@_styled
def kinds(run: FinishedRun) -> str:
    """Bytes sent by each member, by purpose."""
    rows = run.summary["bytes"]
    figure, axes = _figure(height=2.4)
    bottom = [0] * len(rows)
    for number, kind in enumerate(Kind):
        heights = [sent_for(row, [kind]) for row in rows]
        axes.bar(range(len(rows)), heights, bottom=bottom, label=kind, color=COLOURS[number])
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    if len(rows) <= LIVES:
        axes.set_xticks(range(len(rows)), [str(row["member"]) for row in rows])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(Kind))
    _finish(axes, "member", "sent", legend=False)
    return _svg(figure)


@_styled
def lives(run: FinishedRun) -> str | None:
    """The rounds in which each member was in the roster; None if the roster never changed."""
    rosters = run.summary.get("rosters", [])
    if len(rosters) < 2:
        return None
    starts = [roster["first_round"] for roster in rosters]
    ends = [*starts[1:], run.summary["rounds"] + 1]
    members = sorted({member for roster in rosters for member in roster["members"]})[:LIVES]
    figure, axes = _figure(height=0.9 + 0.22 * len(members))
    for roster, start, end in zip(rosters, starts, ends, strict=True):
        for member in set(roster["members"]) & set(members):
            row = members.index(member)
            axes.barh(row, end - start, left=start, color=COLOURS[0], height=0.6)
    axes.set_yticks(range(len(members)), map(str, members))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _finish(axes, "round", "member", legend=False)
    return _svg(figure)


@_styled
def lost(runs: Sequence[FinishedRun]) -> str | None:
    """Lost values, by reason; None if there are none."""
    found = {run.name: losses(run.summary["bytes"]) for run in runs}
    reasons = sorted({reason for counts in found.values() for reason in counts})
    if not reasons:
        return None
    figure, axes = _figure(height=0.9 + 0.27 * len(reasons) * len(runs))
    thick = 0.8 / len(runs)
    for number, (name, counts) in enumerate(found.items()):
        places = [y + number * thick for y in range(len(reasons))]
        heights = [counts.get(reason, 0) for reason in reasons]
        colour = COLOURS[number % len(COLOURS)]
        drawn = axes.barh(places, heights, height=thick, color=colour, label=name)
        axes.bar_label(drawn, [f"{count:,}" for count in heights], padding=3)
    axes.set_yticks([y + 0.4 - thick / 2 for y in range(len(reasons))], reasons)
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    _finish(axes, "values lost, all members", "", legend=len(runs) > 1)
    return _svg(figure)


def _figure(width: float = 6.5, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure of `width` by `height` inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Axes, x: str, y: str, *, legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend and len(axes.get_legend_handles_labels()[0]) <= LEGEND:
        axes.legend()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "washp2p"})
    return text.getvalue()


def _defined(points: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [
        (point["round"], point[key]) for point in points if isinstance(point.get(key), int | float)
    ]


def _mean_curve(members: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean of the curves at each reported round.

    A curve counts from its first round to its last, interpolated between its points.
    """
    rounds = sorted({at for points in members for at, _ in points})
    found = []
    for number in rounds:
        here = [
            float(np.interp(number, [at for at, _ in points], [value for _, value in points]))
            for points in members
            if points[0][0] <= number <= points[-1][0]
        ]
        found.append((number, mean(here)))
    return found
