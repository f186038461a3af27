"""The studies, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.studies import papa, wash

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.studies.lab import Lab
    from washp2p.studies.tables import Report

STUDIES: dict[str, Callable[[Lab], Report]] = {
    "toy": wash.example,
    "volume": wash.volume,
    "homogeneous": wash.homogeneous,
    "heterogeneous": wash.heterogeneous,
    "schedule": wash.schedule,
    "consensus": wash.consensus,
    "probability": wash.probability,
    "window": wash.window,
    "heatmap": wash.heatmap,
    "digits": papa.digits,
    "finetune": papa.finetune,
    "swa": papa.swa,
    "longer": papa.longer,
}
