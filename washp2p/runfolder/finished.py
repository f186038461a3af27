"""Reads a finished run's folder for reports. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

from washp2p.config.options import flag
from washp2p.errors import UsageError
from washp2p.runfolder import rundir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from washp2p.config.config import RunConfig
    from washp2p.protocol.roster import MemberId


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The content of one finished run's folder."""

    name: str
    config: RunConfig
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    """What members reported, in the order in which it came."""
    population: list[dict[str, Any]]
    """Points of the population's curves."""
    consensus: list[dict[str, Any]]
    """Results of surveys of how far members are apart; empty without surveys."""
    hosts: list[dict[str, Any]]
    """Members as the run began, each with `member`, `host` and `versions`."""
    versions: dict[str, Any]
    """The versions of the coordinator's packages."""
    simulated: bool = False
    """Whether one process simulated the run. Its bytes are calculated, not counted."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder. Raises UsageError if it has no finished run."""
        summary = rundir.read_summary(folder)
        config = rundir.read_config(folder)
        try:
            more = json.loads((folder / rundir.CONFIG).read_text())
            metrics = rundir.read_lines(folder / rundir.METRICS)
            population = rundir.read_lines(folder / rundir.POPULATION)
            surveys = folder / rundir.CONSENSUS
            consensus = rundir.read_lines(surveys) if surveys.exists() else []
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
        return cls(
            name=folder.resolve().name,
            config=config,
            summary=summary,
            metrics=metrics,
            population=population,
            consensus=consensus,
            hosts=more.get("members", []),
            versions=more.get("versions", {}),
            simulated=bool(more.get("simulated")),
        )

    def curves(self, key: str) -> dict[MemberId, list[tuple[int, float]]]:
        """Each member's (round, value) pairs of the metric `key`, finite values only."""
        found: dict[MemberId, list[tuple[int, float]]] = {}
        for line in self.metrics:
            value = line.get(key)
            if isinstance(value, int | float) and isfinite(value) and "member" in line:
                found.setdefault(line["member"], []).append((line["round"], float(value)))
        return found


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read several run folders. Raises UsageError if one has no finished run.

    A run's name is the last part of its path. If such names are not unique, all get more parts.
    """
    paths = [folder.resolve() for folder in folders]
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return [
        replace(FinishedRun.read(folder), name="/".join(path.parts[-length:]))
        for folder, path in zip(folders, paths, strict=True)
    ]


def differences(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, with each run's value."""
    configs = [run.config.to_wire() for run in runs]
    return {
        flag(name): [config[name] for config in configs]
        for name in configs[0]
        if any(config[name] != configs[0][name] for config in configs)
    }
