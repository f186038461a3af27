"""`washp2p keys`: make, replace or show the keys that encrypted connections need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.sockets import keys

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "keys", help="make the keys that encrypted links need", prog="washp2p keys"
    )
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in (
        ("init", f"make {keys.COORDINATOR} and {keys.JOIN} in a new folder"),
        ("rotate", "new keys in the place of those in a folder: the old ones open nothing more"),
        ("show", "the public keys in a folder, and what is to go where"),
    ):
        parser = actions.add_parser(action, help=text, prog=f"washp2p keys {action}")
        parser.add_argument("folder", type=Path, metavar="DIR")
    command.set_defaults(carry_out=_keys)


def _keys(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if options.action != "show":
        keys.make(folder, anew=options.action == "rotate")
    coordinator, join = keys.read_coordinator(folder), keys.read_join(folder)
    if (coordinator.own.public, coordinator.join) != (join.coordinator, join.own.public):
        raise UsageError(
            f"{folder / keys.COORDINATOR} and {folder / keys.JOIN} do not belong together; make "
            f"new ones: washp2p keys rotate {folder}"
        )
    print(f"{folder / keys.COORDINATOR}: stays with the coordinator, which listens with it")
    print(f"  its public key is {coordinator.own.public.hex()}")
    print(f"{folder / keys.JOIN}: to every host with workers; who has it may join")
    print(f"  its public key is {coordinator.join.hex()}")
    return 0
