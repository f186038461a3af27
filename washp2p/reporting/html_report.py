"""`washp2p report --html`: one HTML file that reports a run, or compares several.

The file contains its pictures and its style. The module needs the extra `report`.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from statistics import mean
from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError
from washp2p.reporting.report import (
    OTHER,
    amount,
    comparison,
    links,
    losses,
    notices,
    pace,
    per_worker,
    sent,
    warning,
)
from washp2p.runfolder.finished import differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from washp2p.runfolder.finished import FinishedRun


@dataclass(frozen=True)
class _Table:
    """A table. Its first `names` columns hold text, the others hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    names: int = 1
    caption: str = ""


@dataclass(frozen=True)
class _Picture:
    name: str
    caption: str
    data: str


@dataclass(frozen=True)
class _Section:
    title: str
    texts: Sequence[str] = ()
    tables: Sequence[_Table] = ()
    pictures: Sequence[_Picture] = ()
    more_title: str = ""
    more: Sequence[_Table] = field(default=())


def page(runs: Sequence[FinishedRun]) -> str:
    """The HTML for one or several runs. Raises UsageError if the extra is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined

        from washp2p.reporting import figures
    except ImportError as error:
        raise UsageError(
            f"--html needs {error.name}; pip install matplotlib jinja2 (or this project's extra "
            "`report`)"
        ) from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("washp2p.reporting").joinpath("report.html").read_text()
    )

    def pictures(*drawn: tuple[str, str, str | None]) -> list[_Picture]:
        return [
            _Picture(name, caption, b64encode(svg.encode()).decode())
            for name, caption, svg in drawn
            if svg is not None
        ]

    first = runs[0]
    if len(runs) == 1:
        title = f"Run {first.name}"
        sections = [
            _Section(
                "Result", tables=[results(runs)], more_title="Members", more=[_members(first)]
            ),
            _Section(
                "Training",
                pictures=pictures(
                    ("accuracy", "Held-out accuracy of each member", figures.accuracy(runs)),
                    ("consensus", DISTANCE, figures.distance(runs)),
                ),
                tables=[_Table(*pace(first.summary))],
            ),
            _Section(
                "Bytes",
                texts=[comparison(first.summary) + "."],
                pictures=pictures(
                    ("volume", "Payload of a worker's exchanges, mean", figures.volume(runs)),
                    (
                        "matrix",
                        "What those that finished sent whom, all kinds, with headers",
                        figures.matrix(first),
                    ),
                    ("kinds", "Sent for what, with headers", figures.kinds(first)),
                ),
                tables=[_Table(*sent(first.summary), caption=OTHER)],
                more_title="By peer, kind and wire",
                more=[_Table(*links(first.summary), names=4)],
            ),
            _Section(
                "Faults, and what they cost",
                texts=list(_faults(first)),
                tables=[table for table in (_departed(first), _losses(first)) if table.rows],
                pictures=pictures(
                    (
                        "lives",
                        "Rounds in which each member was in the roster",
                        figures.lives(first),
                    ),
                    ("lost", "Values lost, by reason", figures.lost(runs)),
                ),
            ),
            _Section("Configuration", tables=[_configuration(first)]),
            _Section("Environment", tables=[_environment(runs)]),
        ]
    else:
        title = f"{len(runs)} runs compared"
        sections = [
            _Section("Settings in which they differ", tables=[_differing(runs)]),
            _Section("Result", tables=[results(runs)]),
            _Section(
                "Training",
                pictures=pictures(
                    ("accuracy", "Held-out accuracy, mean of members", figures.accuracy(runs)),
                    ("consensus", DISTANCE, figures.distance(runs)),
                ),
            ),
            _Section(
                "Bytes",
                tables=[volumes(runs)],
                pictures=pictures(
                    ("volume", "Payload of a worker's exchanges, mean", figures.volume(runs))
                ),
            ),
            _Section(
                "Faults, and what they cost",
                texts=[f"{run.name}: {text}" for run in runs for text in _faults(run)],
                pictures=pictures(("lost", "Values lost, by reason", figures.lost(runs))),
            ),
            _Section("Configuration", tables=[_configuration(*runs)]),
            _Section("Environment", tables=[_environment(runs)]),
        ]
    warnings = [
        f"{run.name}: {text}" if len(runs) > 1 else text
        for run in runs
        if (text := warning(run.summary))
    ]
    return template.render(
        title=title,
        subtitle=_subtitle(first) if len(runs) == 1 else ", ".join(run.name for run in runs),
        warnings=warnings,
        sections=sections,
    )


DISTANCE = "Distance of members from their mean, all shuffled layers"


def results(runs: Sequence[FinishedRun]) -> _Table:
    """The table of test accuracies as in the papers, one row for each run."""
    rows = []
    for run in runs:
        accuracy = run.summary["accuracy"]
        members = accuracy["members"] or []
        rows.append(
            [
                run.name,
                run.config.method.name,
                run.summary["n"],
                *(_percent(f(members)) if members else "" for f in (mean, max, min)),
                *(_percent(accuracy[key]) for key in ("ensemble", "averaged", "greedy_soup")),
            ]
        )
    header = ["run", "method", "N", "mean member", "best", "worst"]
    return _Table(
        [*header, "Ensemble", "Averaged", "GreedySoup"], rows, 2, "Test accuracy in per cent"
    )


def volumes(runs: Sequence[FinishedRun]) -> _Table:
    """The table of a worker's mean bytes, beside plan, theory and PAPA, one row for each run."""
    rows = []
    for run in runs:
        keys = ("payload", "expected_payload", "theory", "papa", "papa_all_reduce")
        means = {key: per_worker(run.summary, key) for key in keys}
        ratio = f"{means['papa'] / means['payload']:.1f}" if means["payload"] else ""
        pace = f"{run.summary['rounds_per_second']:.1f}"
        rows.append([run.name, *(amount(means[key]) for key in keys), ratio, pace])
    header = ["run", "payload", "plan", "theory", "PAPA", "as all-reduce", "PAPA / payload"]
    return _Table([*header, "rounds/s"], rows, 1, "Of one worker, mean")


def _subtitle(run: FinishedRun) -> str:
    method, training, summary = run.config.method, run.config.training, run.summary
    more = [f"groups of {method.group}"] if method.group else []
    more += [f"block {method.block}"] if method.block != "1" else []
    what = ", ".join([method.name, f"p = {method.p:g}", method.schedule, *more])
    return (
        f"{what}, {training.data}, {training.model}, "
        f"N = {summary['n']}, {summary['rounds']:,} rounds in {summary['seconds']:.0f} s, "
        f"{summary['parameters']:,} parameters"
    )


def _members(run: FinishedRun) -> _Table:
    accuracy = run.summary["accuracy"]
    over = accuracy.get("over") or []
    rows = [
        [f"member {member}", _percent(value)]
        for member, value in zip(over, accuracy["members"] or [], strict=True)
    ]
    return _Table(["model", "test accuracy, %"], rows)


def _faults(run: FinishedRun) -> Iterator[str]:
    summary = run.summary
    departed, lost = summary.get("departed", []), summary["lost_values"]
    refused = sum(row.get("refused_values", 0) for row in summary["bytes"])
    messages = Counter(summary.get("refused_messages", {}))
    for row in summary["bytes"]:
        messages.update(row.get("refused_messages", {}))
    yield from notices(run.summary)
    if not departed and not lost and not refused and not messages:
        yield "None: nobody was lost, and every value that was to come was applied."
        return
    received = lost + refused + sum(row["applied_values"] for row in summary["bytes"])
    share = 100 * lost / received if received else 0.0
    yield (
        f"Members lost: {len(departed)}. Of {received:,} values that were to come to those that "
        f"finished, {lost:,} were never applied ({share:.2f} %). The averaged model is of members "
        f"{', '.join(map(str, summary['averaged_over']))}."
    )
    if refused:
        yield f"{refused:,} values were refused, not being finite."
    if messages:
        told = ", ".join(f"{count:,} {reason}" for reason, count in messages.most_common())
        yield f"Messages refused: {told}."


def _departed(run: FinishedRun) -> _Table:
    rows = [
        [gone["member"], gone["host"], gone["reason"], gone["round"]]
        for gone in run.summary.get("departed", [])
    ]
    return _Table(["member", "host", "reason", "without it from round"], rows, 3)


def _losses(run: FinishedRun) -> _Table:
    rows = [[why, f"{count:,}"] for why, count in losses(run.summary["bytes"]).items()]
    return _Table(["values lost because", "values"], rows)


def _configuration(*runs: FinishedRun) -> _Table:
    configs = [run.config.to_wire() for run in runs]
    rows = [[name, *(config[name] for config in configs)] for name in configs[0]]
    return _Table(["setting", *(run.name for run in runs)], rows, 1 + len(runs))


def _differing(runs: Sequence[FinishedRun]) -> _Table:
    rows = [[name, *values] for name, values in differences(runs).items()]
    return _Table(["setting", *(run.name for run in runs)], rows, 1 + len(runs))


def _environment(runs: Sequence[FinishedRun]) -> _Table:
    """A table of the hosts and versions that processes have reported.

    Members of a run with the same host and versions share a row.
    """
    rows: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        told = [("coordinator", "", run.versions)]
        told += [(f"member {x['member']}", x["host"], x["versions"]) for x in run.hosts]
        for who, host, versions in told:
            text = ", ".join(f"{name} {value}" for name, value in versions.items())
            rows.setdefault((run.name, host, text), []).append(who)
    header = ["run", "who", "host", "versions"]
    table = [[run, ", ".join(who), host, text] for (run, host, text), who in rows.items()]
    return _Table(header, table, len(header))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
