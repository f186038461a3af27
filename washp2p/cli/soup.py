"""`washp2p soup`: makes one model out of the members of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.cli.models import add_model_options, models_of

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "soup", help="one model out of the members of a run", prog="washp2p soup"
    )
    add_model_options(command)
    command.add_argument(
        "--kind",
        default="average",
        choices=("average", "greedy", "best"),
        help="the mean of all, of those that GreedySoup takes, or the best alone "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--align", action="store_true", help="permute each model's units to match the soup so far"
    )
    command.add_argument(
        "--repair", action="store_true", help="give features their members' mean and deviation"
    )
    command.add_argument(
        "--update-bn", action="store_true", help="compute statistics of batch norms anew"
    )
    command.add_argument(
        "--output", type=Path, help="where it goes (default: RUN/soup-<kind and options>)"
    )
    command.set_defaults(carry_out=_soup)


def _soup(options: argparse.Namespace) -> int:
    from workers.training.model_files import save_model
    from workers.training.soup import soup

    models = models_of(options)
    made = soup(
        models,
        options.kind,
        aligned=options.align,
        repaired=options.repair,
        new_statistics=options.update_bn,
    )
    more = [name for name in ("align", "repair", "update_bn") if getattr(options, name)]
    name = "-".join(["soup", options.kind, *more]).replace("_", "-")
    place: Path = options.output or models.folder / f"{name}.safetensors"
    save_model(place, made)
    held_out, test = models.held_out(made), models.accuracy(made, models.data.test)
    print(f"{place}: {test:.2f} % of the test images, {held_out:.2f} % of those held out")
    return 0
