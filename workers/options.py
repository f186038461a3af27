"""Flags about this machine, shared by all programs that train on it. Imports no torch."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_data_options(parser: argparse.ArgumentParser, *, results: bool = True) -> None:
    """Add the flags for where data come from and, with `results`, where results go."""
    group = parser.add_argument_group("this machine's files")
    group.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="data sets (default: %(default)s)"
    )
    group.add_argument("--download", action="store_true", help="fetch the data set if missing")
    if results:
        group.add_argument(
            "--run-dir",
            type=Path,
            help="folder for the run's files (default: runs/<the run's name>)",
        )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the flag for one worker's device."""
    parser.add_argument(
        "--device",
        default="",
        help="torch device (default: cuda if there is one; under torchrun or srun the GPU of this "
        "process's number on its host)",
    )


def add_devices_option(parser: argparse.ArgumentParser) -> None:
    """Add the flag for several workers' devices."""
    parser.add_argument(
        "--devices",
        default="",
        metavar="DEVICE,...",
        help="torch devices that workers take turns on, as in cuda:0,cuda:1 (default: cuda if "
        "there is one)",
    )


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add the flag for a worker's number of threads."""
    parser.add_argument(
        "--threads", type=_threads, default=0, help="torch threads of a worker (default: its share)"
    )


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) > 4096:
        raise ArgumentTypeError(f"{text!r}; expected a number up to 4096, 0 to choose")
    return int(text)
