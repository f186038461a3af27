"""`washp2p evaluate`: prints models' test accuracy, or how alike their features are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console

from washp2p.cli.models import add_model_options, models_of
from washp2p.errors import UsageError
from washp2p.reporting.report import filled

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "evaluate", help="what each model of a run is worth", prog="washp2p evaluate"
    )
    add_model_options(command)
    command.add_argument(
        "--features",
        action="store_true",
        help="how alike the models' features are, layer by layer (cosine similarity)",
    )
    command.add_argument(
        "--align", action="store_true", help="for that permute each model's units to match"
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(carry_out=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from workers.training.soup import evaluate, feature_similarities

    models = models_of(options)
    if options.features:
        alike = feature_similarities(models, aligned=options.align)
        if options.json:
            print(json.dumps([one._asdict() for one in alike], indent=1))
            return 0
        lines = [[one.layer, f"{one.between:.2f}", f"{one.averaged:.2f}"] for one in alike]
        header = ["layer", "two members, %", "member and average, %"]
        table = filled("cosine similarity of features", (header, lines))
        Console(highlight=False).print(table)
        return 0
    if options.align:
        raise UsageError("--align is for --features; add that, or leave it out")
    found = evaluate(models)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        rows = [[name, f"{value:.2f}"] for name, value in found.items()]
        Console(highlight=False).print(filled("test accuracy", (["model", "%"], rows)))
    return 0
