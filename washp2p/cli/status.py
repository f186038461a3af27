"""`washp2p status`: look at a live run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.commandline import add_link_options
from washp2p.sockets import keys

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser("status", help="look at a live run", prog="washp2p status")
    command.add_argument("coordinator", help="its address, tcp://HOST:PORT")
    command.add_argument("--json", action="store_true", help="for programs")
    command.add_argument("--once", action="store_true", help="look once, on a terminal, too")
    command.add_argument(
        "--wait", type=float, default=5.0, help="seconds to wait for it (default: %(default)g)"
    )
    add_link_options(command, "join.key")
    command.set_defaults(carry_out=_status)


def _status(options: argparse.Namespace) -> int:
    from washp2p.cli.observer import Observer, show

    join = None if options.keys is None else keys.read_join(options.keys)
    with Observer(
        options.coordinator, join, insecure=options.insecure, wait=options.wait
    ) as observer:
        return show(observer, as_json=options.json, once=options.once)
