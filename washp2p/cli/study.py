"""`washp2p study`: makes one of the papers' tables or figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.options import add_data_options, add_devices_option, add_threads_option
from workers.studies.command import add_study_options, make_study

if TYPE_CHECKING:
    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "study", help="make one of the papers' tables or figures", prog="washp2p study"
    )
    add_study_options(command)
    add_data_options(command, results=False)
    add_threads_option(command)
    add_devices_option(command)
    command.set_defaults(carry_out=make_study)
