"""Flags about this machine, shared by all programs that train on it. No torch."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where data come from and results go."""
    group = parser.add_argument_group("this machine's files")
    group.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="data sets (default: %(default)s)"
    )
    group.add_argument("--download", action="store_true", help="fetch the data set if missing")
    group.add_argument(
        "--run-dir", type=Path, help="folder for the run's files (default: runs/<the run's name>)"
    )


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """What a worker process computes with."""
    group = parser.add_argument_group("this machine's devices")
    group.add_argument("--device", default="", help="torch device (default: cuda if there is one)")
    group.add_argument(
        "--threads", type=_threads, default=0, help="torch threads of a worker (default: its share)"
    )


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) > 4096:
        raise ArgumentTypeError(f"{text!r}; expected a number up to 4096, 0 to choose")
    return int(text)
