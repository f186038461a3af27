"""Code that all command lines share. Errors become one line and an exit code, no traceback."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from washp2p.errors import INTERRUPTED, UsageError, WashError
from washp2p.runfolder.process_log import add_log_option, complain

if TYPE_CHECKING:
    from collections.abc import Iterator


HTTP = "127.0.0.1:8080"
"""The default address of a status page."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError. It accepts no abbreviated flags."""

    def __init__(self, *, prog: str, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError where argparse would print its usage and exit."""
        raise UsageError(f"{message}; {self.prog} --help lists what is expected")


def add_link_options(parser: argparse._ActionsContainer, file: str) -> None:
    """Add the flags for encryption. `file` is the name of this program's key file."""
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help=f"encrypt links, with {file} in this folder (see washp2p keys init)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain text on a network you trust"
    )


def add_observation_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags for showing a run: status page, metrics, TensorBoard. Returns their group."""
    group = parser.add_argument_group("to be looked at")
    add_log_option(group)
    group.add_argument(
        "--http",
        nargs="?",
        const=HTTP,
        metavar="HOST:PORT",
        help=f"serve a status page there, and Prometheus metrics (without an address: {HTTP})",
    )
    group.add_argument(
        "--public", action="store_true", help="serve it off loopback, to whoever comes"
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write TensorBoard event files into the run folder (extra `tensorboard`)",
    )
    return group


@contextmanager
def report_errors(program: str) -> Iterator[None]:
    """Run a `with` block; turn this project's errors and interrupts into a line and an exit code.

    From here on SIGTERM counts as an interrupt. The process may open as many files and connections
    as the system allows, so that strangers who only connect cannot use them up. Raises SystemExit.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except WashError as error:
        complain(f"{program}: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain(f"{program}: interrupted", "interrupted")
        sys.exit(INTERRUPTED)


if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[Parser]
