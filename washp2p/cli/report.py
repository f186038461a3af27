"""`washp2p report`: shows a finished run, or compares several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from washp2p.errors import UsageError
from washp2p.reporting.report import final_tables, links_table, runs_table
from washp2p.runfolder import rundir
from washp2p.runfolder.finished import read_runs

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "report", help="bytes and accuracy of a run, or several", prog="washp2p report"
    )
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument(
        "--html", action="store_true", help="one file with tables and pictures (extra `report`)"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where that goes (default: RUN/report.html; of several runs report.html)",
    )
    command.set_defaults(carry_out=_report)


def _report(options: argparse.Namespace) -> int:
    if options.output is not None and not options.html:
        raise UsageError("--output is where --html goes; add --html")
    folders: list[Path] = options.runs
    console = Console(highlight=False)
    if options.html:
        from washp2p.reporting.html_report import page

        default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
        place = options.output or default
        rundir.write_bytes(place, page(read_runs(folders)).encode())
        print(place)
    elif options.json:
        summaries = [rundir.read_summary(folder) for folder in folders]
        print(json.dumps(summaries[0] if len(folders) == 1 else summaries, indent=1))
    elif len(folders) == 1:
        summary = rundir.read_summary(folders[0])
        for table in (*final_tables(summary), links_table(summary)):
            console.print(table)
    else:
        console.print(runs_table(read_runs(folders)))
    return 0
