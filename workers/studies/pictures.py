"""Pictures of studies, by matplotlib (extra `report`). Each function writes a file and returns
its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from workers.studies.tables import Value
    from workers.studies.toy import Points

Lines = dict[str, list[tuple[float, float]]]


def require() -> None:
    """Raise UsageError unless pictures can be made."""
    _figure(1, 1)


def dots(
    place: Path, groups: Mapping[str, Mapping[str, Value]], what: str, *, log: bool = False
) -> str:
    """Draw a panel for each of `groups`, with its values' means and standard deviations.

    `groups` has values by name, by the panel's title. All panels have the same names. `what` labels
    the axis of values, which is logarithmic with `log`.
    """
    names = list(next(iter(groups.values())))
    figure = _figure(2 + 3 * len(groups), 1 + 0.3 * len(names))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, groups.items(), strict=True):
        found = [values[name] for name in names]
        means, spreads = [one.mean for one in found], [one.deviation for one in found]
        axes.errorbar(means, range(len(names)), xerr=spreads, fmt="o", capsize=3)
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(what)
        if log:
            axes.set_xscale("log")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return _save(figure, place)


def lines(place: Path, curves: Lines, x: str, y: str, ticks: list[str] | None = None) -> str:
    """Draw curves by name. `ticks` are the words on the axis at x = 0, 1, ..."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o" if ticks else "", label=name)
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks, rotation=30)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    return _save(figure, place)


def by_quarter(place: Path, curves: dict[str, list[tuple[float, list[float]]]]) -> str:
    """Draw distances to consensus over rounds, with a panel for each quarter of the parameters."""
    figure = _figure(10, 3)
    for quarter, axes in enumerate(figure.subplots(1, 4)):
        for name, points in curves.items():
            axes.plot([at for at, _ in points], [each[quarter] for _, each in points], label=name)
        axes.set_title(f"quarter {quarter + 1}")
        axes.set_xlabel("round")
    figure.axes[0].set_ylabel("distance to consensus")
    figure.axes[-1].legend()
    return _save(figure, place)


def triangles(place: Path, grid: Sequence[tuple[float, ...]], maps: dict[str, list[float]]) -> str:
    """Draw a triangle for each of `maps`: its values at a `grid` of weights of three members."""
    figure = _figure(10, 3)
    across = [b + c / 2 for _, b, c in grid]
    up = [c * 3**0.5 / 2 for _, _, c in grid]
    low, high = (limit(value for found in maps.values() for value in found) for limit in (min, max))
    for axes, (name, found) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        drawn = axes.tripcolor(across, up, found, shading="gouraud", vmin=low, vmax=high)
        for label, x, y in (("A", 0, -0.08), ("B", 1, -0.08), ("C", 0.5, 0.9)):
            axes.text(x, y, label, ha="center")
        axes.set_title(name)
        axes.set_aspect("equal")
        axes.axis("off")
    figure.colorbar(drawn, ax=figure.axes, label="test accuracy, %")
    return _save(figure, place)


def paths(place: Path, trajectories: dict[str, Points]) -> str:
    """Draw the paths of two points (steps x 2 x 2), with a panel for each method."""
    figure = _figure(10, 3.4)
    for axes, (name, path) in zip(
        figure.subplots(1, len(trajectories)), trajectories.items(), strict=True
    ):
        for point in (0, 1):
            axes.plot(path[:, point, 0], path[:, point, 1], linewidth=0.8)
            axes.plot(*path[0, point], "k+")
            axes.plot(*path[-1, point], "o")
        axes.plot([8, 3], [3, 8], "kv", fillstyle="none")
        axes.plot(10, 10, "k^", fillstyle="none")
        axes.set_title(name)
        axes.set_xlim(-1, 13)
        axes.set_ylim(-1, 13)
    return _save(figure, place)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "pictures need matplotlib; pip install matplotlib (or this project's extra `report`)"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, place: Path) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120)
    return place.name
