"""WASH's tables and figures. Each function makes a study's runs in a `Lab` and returns a
`Report`.
"""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from washp2p.errors import UsageError
from washp2p.reporting.report import amount, per_worker
from workers.studies import papers, pictures, toy
from workers.studies.lab import accuracy, by_method
from workers.studies.tables import Report, Table, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.runfolder.finished import FinishedRun
    from workers.studies.lab import Lab
    from workers.studies.tables import Cell

METHODS: dict[str, dict[str, Any]] = {
    "Baseline": {"method": "none"},
    "PAPA": {"method": "papa"},
    "WASH": {"method": "wash"},
    "WASH+Opt": {"method": "wash-opt"},
}
COLUMNS = ("ensemble", "averaged", "greedy_soup", "best", "worst")
GRID = 9
"""Steps of a heatmap's grid between two members. A multiple of 3: one point is the equal mean."""
SURVEYED: dict[str, Any] = {"augment": "hetero", "track_consensus": 20}
"""Options of runs for WASH's figures 2 and 4: a heterogeneous population with surveys."""
_SURVEYS = (
    "The population is heterogeneous, as in the paper. Distances are measured every "
    f"{SURVEYED['track_consensus']} rounds, by a fixed random sample of the parameters (under "
    "`--simulate` by all)."
)
TITLES = ("Ensemble", "Averaged", "GreedySoup", "best member", "worst member")


def volume(lab: Lab) -> Report:
    """WASH, table 1: the bytes that each method sends, compared with PAPA's."""
    report = Report("volume", "Communication volume (WASH, table 1)")
    panels: dict[str, dict[str, Value]] = {}
    for scene in lab.scenes:
        n = scene.members[0]
        methods = ("none", "papa", "papa-all", "papa-2", "sparta", "wash", "wash-opt")
        found = {method: lab.runs(scene, n, measured=True, method=method) for method in methods}
        sent_by = {
            method: Value([per_worker(run.summary, "payload") for run in runs])
            for method, runs in found.items()
        }
        base = sent_by["papa"].mean
        rows: list[list[Cell]] = []
        for method, runs in found.items():
            sent = sent_by[method].mean
            theory = mean(per_worker(run.summary, "theory") for run in runs)
            rows.append(
                [
                    method,
                    amount(sent),
                    f"{sent / theory:.3f}" if theory else "",
                    f"1/{base / sent:.1f}" if sent else "0",
                    *papers.VOLUMES.get(method, ("", "")),
                ]
            )
        header = ["method", "payload a worker", "of its formula", "of PAPA's", "paper: CIFAR"]
        title = f"{scene.name}, N = {n}"
        report.tables.append(Table(title, [*header, "paper: ImageNet"], rows))
        panels[title] = {method: sent for method, sent in sent_by.items() if sent.mean}
    picture = lab.pictures / "volume.png"
    report.pictures.append(pictures.dots(picture, panels, "bytes a worker", log=True))
    report.notes.append(
        "Measured in `washp2p run`, headers left out. The paper counts d/T for PAPA and p d/2 for "
        "WASH; here PAPA's means are reduced and shared peer to peer, 2 (N-1)/N d each, and WASH "
        f"sends (N-1)/N of what its layers' own rates select. {lab.said()}"
    )
    return report


def homogeneous(lab: Lab) -> Report:
    """WASH, table 3: methods by N, members trained alike."""
    return _methods(lab, "homogeneous", "A homogeneous population (WASH, table 3)", "none")


def heterogeneous(lab: Lab) -> Report:
    """WASH, table 2: methods by N, each member with augmentations of its own."""
    return _methods(lab, "heterogeneous", "A heterogeneous population (WASH, table 2)", "hetero")


def _methods(lab: Lab, name: str, title: str, augment: str) -> Report:
    known = papers.HETEROGENEOUS if augment == "hetero" else papers.HOMOGENEOUS
    table = by_method(lab, METHODS, known, lambda _: {"augment": augment})
    return Report(name, title, [table], [lab.said()], [lab.dots(name, table)])


def schedule(lab: Lab) -> Report:
    """WASH, table 4 and figure 4: selection rates over depth."""
    scene, n = lab.decided()
    rows: list[list[Cell]] = []
    distances: list[list[Cell]] = []
    apart: dict[str, list[tuple[float, list[float]]]] = {}
    for name, theirs in papers.SCHEDULES.items():
        runs = lab.runs(scene, n, method="wash", schedule=name, **SURVEYED)
        rows.append([name, *(accuracy(runs, key) for key in COLUMNS)])
        rows.append(["(paper, CIFAR-100)", *theirs])
        found = _surveys(runs, "quarters")
        distances.append([name, *map(Value, found[max(found)].T.tolist())])
        apart[name] = [(at, over.mean(axis=0).tolist()) for at, over in found.items()]
    report = Report("schedule", "Selection over depth (WASH, table 4 and figure 4)")
    title = f"{scene.name}, N = {n}"
    report.tables.append(Table(f"Test accuracy, per cent; {title}", ["schedule", *TITLES], rows))
    header = ["schedule", *(f"quarter {k} of the parameters" for k in (1, 2, 3, 4))]
    report.tables.append(Table("Distance to consensus, at the end", header, distances))
    report.pictures.append(pictures.by_quarter(lab.pictures / "schedule.png", apart))
    report.notes.append(f"{_SURVEYS} {lab.said(scene)}")
    return report


def consensus(lab: Lab) -> Report:
    """WASH, figure 2: how far members are from their mean, in training."""
    scene, n = lab.decided()
    variants: dict[str, dict[str, Any]] = {
        "separate": {"method": "none"},
        "PAPA": {"method": "papa", "init": "same"},
        "PAPA-all": {"method": "papa-all", "init": "same"},
        "WASH": {"method": "wash"},
    }
    rows: list[list[Cell]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, changes in variants.items():
        found = _surveys(lab.runs(scene, n, **SURVEYED, **changes), "distance")
        over = np.array(list(found.values()))  # rounds x seeds
        second_half = over[len(over) // 2 :].mean(axis=0)
        rows.append([name, *(Value(x.tolist()) for x in (over.max(axis=0), second_half, over[-1]))])
        lines[name] = [(at, float(values.mean())) for at, values in found.items()]
    report = Report("consensus", "Distance to consensus (WASH, figure 2)")
    header = ["method", "furthest", "on average in the second half", "at the end"]
    report.tables.append(Table(f"{scene.name}, N = {n}", header, rows))
    picture = lab.pictures / "consensus.png"
    report.pictures.append(pictures.lines(picture, lines, "round", "distance to consensus"))
    report.notes.append(f"{_SURVEYS} {lab.said(scene)}")
    return report


def probability(lab: Lab) -> Report:
    """WASH, figure 5a: accuracy by the base probability p, with its phase transition."""
    scene, n = lab.decided()
    base = lab.config(scene, n, lab.seeds[0]).method.p
    labels = [f"{base * x:.3g}" for x in (0.01, 0.1, 0.3, 1, 3, 10) if base * x < 1] + ["1"]
    values = {label: {"p": float(label)} for label in labels}
    return _sweep(lab, "probability", "Base probability (WASH, figure 5a)", "p", values)


def window(lab: Lab) -> Report:
    """WASH, figure 5b: shuffling that starts late or stops early."""
    values: dict[str, dict[str, Any]] = {"always": {}}
    values |= {f"from {x}": {"from_": x} for x in ("0.25", "0.5", "0.75")}
    values |= {f"until {x}": {"until": x} for x in ("0.25", "0.5", "0.75")}
    title = "Shuffling during a part of training (WASH, figure 5b)"
    return _sweep(lab, "window", title, "shuffled", values)


def _sweep(lab: Lab, name: str, title: str, what: str, values: dict[str, dict[str, Any]]) -> Report:
    scene, n = lab.decided()
    rows: list[list[Cell]] = []
    lines: dict[str, list[tuple[float, float]]] = {"Ensemble": [], "Averaged": []}
    for place, (label, changes) in enumerate(values.items()):
        runs = lab.runs(scene, n, method="wash", **changes)
        found = [accuracy(runs, key) for key in COLUMNS]
        rows.append([label, *found])
        for line, value in zip(lines, found, strict=False):
            lines[line].append((place, value.mean))
    report = Report(name, title)
    report.tables.append(Table(f"{scene.name}, N = {n}", [what, *TITLES], rows))
    picture = lab.pictures / f"{name}.png"
    report.pictures.append(pictures.lines(picture, lines, what, "test accuracy, %", list(values)))
    report.notes.append(lab.said(scene))
    return report


def heatmap(lab: Lab) -> Report:
    """WASH, figure 6: the accuracy of weighted means of three members."""
    scene, n = lab.decided()
    if n < 3:
        raise UsageError(f"--n is {n}; the study heatmap is of models between three: expected 3")
    grid = [
        (1 - (i + j) / GRID, i / GRID, j / GRID)
        for i in range(GRID + 1)
        for j in range(GRID - i + 1)
    ]
    rows: list[list[Cell]] = []
    maps: dict[str, list[float]] = {}
    for name in ("Baseline", "WASH", "WASH+Opt"):
        found = []
        for run in lab.runs(scene, n, **METHODS[name]):
            between = lab.cells.between(run.config)
            found.append([between(weights) for weights in grid])
        maps[name] = found[0]
        corners = [k for k, weights in enumerate(grid) if 1 in weights]
        inside = [[one[k] for k in range(len(grid)) if k not in corners] for one in found]
        rows.append(
            [
                name,
                Value([sum(one[k] for k in corners) / 3 for one in found]),
                *(Value([measure(one) for one in inside]) for measure in (mean, min, max)),
                Value([nearest_to_the_middle(one, grid) for one in found]),
            ]
        )
    report = Report("heatmap", "Between three members (WASH, figure 6)")
    header = ["method", "the three", "between: mean", "worst", "best", "nearest to the middle"]
    report.tables.append(Table(f"Test accuracy, per cent; {scene.name}, N = {n}", header, rows))
    place = lab.pictures / "heatmap.png"
    report.pictures.append(pictures.triangles(place, grid, maps))
    report.notes.append(
        f"{len(grid)} models w1 A + w2 B + w3 C of the first three members, on a grid of steps of "
        f"1/{GRID}; the picture is of seed {lab.seeds[0]}. The paper's is of five members, and "
        f"does not say which models it shows. {lab.said(scene)}"
    )
    return report


def nearest_to_the_middle(found: Sequence[float], grid: Sequence[tuple[float, ...]]) -> float:
    """The value in `found` at the point of `grid` whose weights are closest to equal."""
    return min(zip(grid, found, strict=True), key=lambda pair: max(pair[0]) - min(pair[0]))[1]


def example(lab: Lab) -> Report:
    """WASH, figure 3: two points on a loss with one global and two local minima."""
    runs = 100
    rows: list[list[Cell]] = []
    for noise in (0.0, 0.1, 0.3, 0.5, 1.0):
        row: list[Cell] = [f"{noise:g}"]
        for method in toy.METHODS:
            share = toy.reached(toy.trajectories(method, runs=runs, noise=noise)).mean()
            row.append(f"{100 * share:.0f} %")
        rows.append(row)
    report = Report("toy", "Two points (WASH, figure 3, equations 7 and 8)")
    header = ["gradient noise (sd)", "separate", "PAPA", "WASH"]
    title = f"How often both points reach (10, 10), of {runs} pairs"
    report.tables.append(Table(title, header, rows))
    paths = {name: toy.trajectories(name, runs=1, noise=0.3)[:, 0] for name in toy.METHODS}
    report.pictures.append(pictures.paths(lab.pictures / "toy.png", paths))
    report.notes.append(
        f"{toy.STEPS} steps, learning rate {toy.LR}, alpha {toy.ALPHA} and p {toy.P} at each step; "
        f"reached: within {toy.REACHED} at the end. The paper does not say how large its noise is."
    )
    return report


def _surveys(runs: Sequence[FinishedRun], key: str) -> dict[int, np.ndarray]:
    """The survey results called `key`, by round: arrays of runs x quantities.

    Rounds that lack a survey in any run are left out, and so are surveys made for checkpoints only.
    Raises UsageError if no round remains.
    """
    every = SURVEYED["track_consensus"]
    by_run = [
        {line["round"]: line[key] for line in run.consensus if line["round"] % every == 0}
        for run in runs
    ]
    rounds = sorted(set.intersection(*map(set, by_run)))
    if not rounds:
        raise UsageError(
            f"no distances to consensus in {len(runs)} runs; expected one in {every} "
            "rounds, so longer training"
        )
    return {number: np.array([found[number] for found in by_run]) for number in rounds}
