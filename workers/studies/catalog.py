"""The studies, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.studies import beyond, papa, wash

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.studies.lab import Lab
    from workers.studies.tables import Report

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
    "block": beyond.block,
}
