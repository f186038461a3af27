"""What `washp2p soup` and `washp2p evaluate` share: the models that they read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.options import add_data_options, add_device_option

if TYPE_CHECKING:
    import argparse

    from workers.training.soup import Models


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the flags that say which models to read, and on which data and device."""
    command.add_argument(
        "places",
        type=Path,
        nargs="+",
        metavar="RUN|FILE",
        help="a run folder, or models (safetensors) in one",
    )
    add_data_options(command, results=False)
    add_device_option(command)


def models_of(options: argparse.Namespace) -> Models:
    """Read the models that the flags name. Raises UsageError."""
    from workers.__main__ import pick_device
    from workers.training.soup import read_models

    device = pick_device(options.device)
    return read_models(options.places, options.data_dir, device, download=options.download)
