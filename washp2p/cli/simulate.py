"""`washp2p simulate`: train a population in one process, or repeat a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from washp2p.config.flags import add_options, config_from
from washp2p.reporting.report import final_tables
from washp2p.runfolder import rundir
from workers.options import add_data_options

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "simulate",
        help="the same population in one process: the reference",
        prog="washp2p simulate",
    )
    add_options(command)
    add_data_options(command)
    command.add_argument(
        "--replay", type=Path, metavar="RUN", help="repeat a run from its folder, bit for bit"
    )
    command.set_defaults(carry_out=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    replay: Path | None = options.replay
    config = rundir.read_config(replay) if replay else config_from(options)
    folder = rundir.create((options.run_dir or rundir.default()).resolve())
    from workers.simulation.simulate import differences, simulate
    from workers.training.data import load_data

    console = Console(highlight=False)
    data = load_data(config, options.data_dir, download=options.download)
    console.print(f"simulating {config.n} members in one process, run folder {folder}")
    summary = simulate(
        config,
        data,
        folder,
        on_epoch=lambda v: console.print(
            f"member {v['member']}  epoch {v['epoch']}  loss {v['loss']:.4f}"
        ),
        replay=replay,
    )
    for table in final_tables(summary):
        console.print(table)
    if replay is None:
        return 0
    if wrong := differences(folder, replay):
        console.print(f"not equal to {replay}: {', '.join(wrong)}")
        return 1
    console.print(f"all models equal those of {replay} bit for bit")
    return 0
