"""Make the API reference beside this file, or in the folder given: `python docs/api/build.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import washp2p

MODULES = (
    "washp2p",
    "!washp2p.",
    "washp2p.evaluation",
    "!washp2p.evaluation.",
    "washp2p.errors",
    "washp2p.metrics",
)

if __name__ == "__main__":
    vars(washp2p).update((name, getattr(washp2p, name)) for name in washp2p.__all__)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    pdoc.pdoc(*MODULES, output_directory=folder)
