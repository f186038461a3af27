"""`washp2p run`: train a population on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.commandline import add_observation_options
from washp2p.config.config import FREE
from washp2p.config.flags import add_options, config_from
from washp2p.errors import UsageError
from washp2p.runfolder import checkpoints, rundir
from washp2p.runfolder.process_log import Log
from workers.options import add_data_options, add_devices_option, add_threads_option

if TYPE_CHECKING:
    import argparse

    from washp2p.commandline import Subcommands


def add(commands: Subcommands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "run", help="train a population on this machine", prog="washp2p run"
    )
    add_options(command)
    add_data_options(command)
    add_devices_option(command)
    add_threads_option(command)
    add_observation_options(command)
    command.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder from its last checkpoint",
    )
    command.set_defaults(carry_out=_run)


def _run(options: argparse.Namespace) -> int:
    from washp2p.cli.launch import Launch

    known = None
    if options.resume is not None:
        if options.run_dir is not None:
            raise UsageError("--resume names the run folder; leave out --run-dir")
        folder = options.resume.resolve()
        rundir.require_unfinished(folder)
        known = rundir.read_config(folder)
    config = config_from(options, known, free=FREE)
    if known is None:
        folder = (options.run_dir or rundir.default()).resolve()
    n = config.n
    if known is not None:
        n = min(n, checkpoints.members_in(folder))
        if not n:
            raise UsageError(f"{folder} has no checkpoint yet; start anew with another --run-dir")
    flags = config.flags()
    Log(options.log)
    flags += [f"--log={options.log}"]
    flags += [f"--http={options.http}"] if options.http else []
    flags += [f"--{name}" for name in ("public", "tensorboard") if getattr(options, name)]
    local = [f"--data-dir={options.data_dir}", f"--log={options.log}"]
    if options.threads:
        local.append(f"--threads={options.threads}")
    if options.download:
        local.append("--download")
    launch = Launch(
        n,
        flags,
        local,
        folder,
        devices=options.devices.split(","),
        resume=known is not None,
    )
    return asyncio.run(launch.run())
