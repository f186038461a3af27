"""Studies of what the papers do not have. Each function makes a study's runs in a `Lab` and returns
a `Report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.studies import pictures
from workers.studies.lab import accuracy
from workers.studies.tables import Report, Table

if TYPE_CHECKING:
    from workers.studies.lab import Lab
    from workers.studies.tables import Cell, Value

BLOCKS = ("1", "4", "16", "64", "row")
LESS = 0.3
"""The smaller p of the study `block`, as a share of the scene's: nearer to the phase transition."""


def block(lab: Lab) -> Report:
    """Accuracy by `--block`, at the scene's p and at a smaller one."""
    report = Report("block", "Blocks: consecutive scalars that are shuffled as one (--block)")
    panels: dict[str, dict[str, Value]] = {}
    for scene in lab.scenes:
        n = scene.members[0]
        base = lab.config(scene, n, lab.seeds[0]).method.p
        rates = [f"{base * share:.3g}" for share in (1, LESS)]
        title = f"{scene.name}, N = {n}"
        panels |= {f"{title}, p = {p}": {} for p in rates}
        rows: list[list[Cell]] = []
        for length in BLOCKS:
            row: list[Cell] = [length]
            for p in rates:
                runs = lab.runs(scene, n, method="wash", p=float(p), block=length)
                found = [accuracy(runs, key) for key in ("averaged", "ensemble", "mean")]
                panels[f"{title}, p = {p}"][length] = found[0]
                row += found
            rows.append(row)
        columns = [
            f"{what}, p = {p}" for p in rates for what in ("Averaged", "Ensemble", "mean member")
        ]
        report.tables.append(Table(title, ["block", *columns], rows))
    picture = lab.pictures / "block.png"
    report.pictures.append(pictures.dots(picture, panels, "averaged, test accuracy, %"))
    report.notes.append(lab.said())
    return report
