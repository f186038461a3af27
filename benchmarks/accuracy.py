"""The main effect: WASH's averaged model against its ensemble, and separate training's.

    python -m benchmarks.accuracy digits
    python -m benchmarks.accuracy fashion-mnist

Each row is real distributed runs (`washp2p run`), one for each seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean

from benchmarks.record import record, run, spread

SETTINGS = {
    "digits": (["--n=5"], range(5)),
    "fashion-mnist": (
        ["--n=3", "--data=fashion-mnist", "--train-limit=6000", "--p=0.01", "--epochs=12"],
        range(3),
    ),
}
METHODS = ("wash", "wash-opt", "none")


def train(flags: list[str], folder: Path) -> dict[str, object]:
    """One population; its summary."""
    command = [sys.executable, "-m", "washp2p", "run", *flags, f"--run-dir={folder}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with code {done.returncode}")
    summary: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return summary


def main(name: str) -> None:
    """Run all seeds of the setting `name` and record them."""
    flags, seeds = SETTINGS[name]
    rows = []
    for method in METHODS:
        columns: dict[str, list[float]] = {}
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                chosen = [*flags, f"--method={method}", f"--seed={seed}"]
                summary = train(chosen, Path(folder) / "run")
            found: dict[str, float | list[float]] = summary["accuracy"]  # type: ignore[assignment]  # JSON
            for key, value in found.items():
                number = mean(value) if isinstance(value, list) else value
                columns.setdefault(key, []).append(number)
            columns.setdefault("short", []).append(
                columns["ensemble"][-1] - columns["averaged"][-1]
            )
        cells = [
            spread(columns[key])
            for key in ("members", "ensemble", "averaged", "greedy_soup", "short")
        ]
        rows.append([method, *cells])
    record(
        name,
        f"Averaged model against ensemble: {name}",
        ["method", "mean member", "Ensemble", "Averaged", "GreedySoup", "Ensemble - Averaged"],
        rows,
        f"`washp2p run {' '.join(flags)} --method=... --seed=...`, seeds {min(seeds)} to "
        f"{max(seeds)}; test accuracy in per cent, mean ± standard deviation over seeds.",
    )


if __name__ == "__main__":
    sys.exit(run({name: partial(main, name) for name in SETTINGS}, takes="tens of minutes"))
