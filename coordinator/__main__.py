"""`python -m coordinator --n 5`: start a run and wait for its workers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.commandline import (
    Parser,
    add_link_options,
    add_observation_options,
    report_errors,
)
from washp2p.config.config import FREE
from washp2p.config.flags import add_options, config_from
from washp2p.errors import UsageError
from washp2p.protocol.endpoints import http_address, require_loopback
from washp2p.runfolder import rundir
from washp2p.runfolder.process_log import Log
from washp2p.sockets.keys import read_coordinator

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> Parser:
    """The program's parser."""
    made = Parser(prog="python -m coordinator", description=__doc__)
    add_options(made)
    local = made.add_argument_group("this process")
    local.add_argument(
        "--bind", help="where to listen (default: tcp://127.0.0.1:5555, or as before)"
    )
    add_link_options(local, "coordinator.key")
    where = local.add_mutually_exclusive_group()
    where.add_argument(
        "--run-dir",
        type=Path,
        help="folder for the run's files (default: runs/<timestamp>); where a coordinator has "
        "died in it, this one takes its place, with no other flag needed",
    )
    where.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder from its last checkpoint, once workers with its "
        "checkpoints have come; only --min-n and --patience may be changed",
    )
    local.add_argument(
        "--hand-over",
        action="store_true",
        help="on SIGTERM leave the run to another coordinator with the same --run-dir, as where a "
        "cluster moves it, instead of ending the run",
    )
    local.add_argument(
        "--ready-fd",
        type=int,
        help="write the address and a newline to this file descriptor once workers may join",
    )
    add_observation_options(made).add_argument(
        "--stay",
        action="store_true",
        help="when the run is over leave the status page there, until interrupted",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the coordinator. Returns its exit code."""
    with report_errors("coordinator"):
        options = parser().parse_args(arguments)
        log = Log(options.log)
        folder = options.resume or options.run_dir
        if options.resume is not None:
            rundir.require_unfinished(folder)
        if folder is not None and folder.exists():
            rundir.create(folder, go_on=True)  # says so if the run in it has finished
        goes_on = folder is not None and rundir.unfinished(folder)
        known = rundir.read_config(folder) if goes_on else None
        config = config_from(options, known, free=FREE if options.resume is not None else ())
        keys = None if options.keys is None else read_coordinator(options.keys)
        if options.bind:
            encrypted = keys is not None
            require_loopback(options.bind, encrypted=encrypted, insecure=options.insecure)
        if options.stay and not options.http:
            raise UsageError("--stay is for the status page; add --http, or leave it out")
        http = http_address(options.http, public=options.public) if options.http else None
        from coordinator.service.server import Server
        from coordinator.watch.display import Display
        from coordinator.watch.observers import Observers
        from coordinator.watch.scalars import Scalars

        folder = (folder or rundir.default()).resolve()
        scalars = Scalars(folder / "tensorboard") if options.tensorboard else None
        log.about(run=folder.name)
        with Display(log) as display:
            observers = Observers(display, folder, http=http, scalars=scalars)
            resume = options.resume is not None
            server = Server(
                config,
                folder,
                observers,
                keys=keys,
                resume=resume,
                hand_over=options.hand_over,
            )
            serving = server.serve(options.bind, ready_fd=options.ready_fd, stay=options.stay)
            return asyncio.run(serving)


if __name__ == "__main__":
    sys.exit(main())
