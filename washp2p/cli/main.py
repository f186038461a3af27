"""The `washp2p` command: run, simulate, report, soup, evaluate, study, status, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.cli import evaluate, keys, report, run, simulate, soup, status, study
from washp2p.commandline import Parser, report_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (run, simulate, report, soup, evaluate, study, status, keys)


def parser() -> Parser:
    """The command's parser, with a subparser for each of COMMANDS."""
    made = Parser(prog="washp2p", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    with report_errors("washp2p"):
        options = parser().parse_args(arguments)
        code: int = options.carry_out(options)
        return code
