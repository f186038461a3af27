"""The method of docs/new-strategy.md, just as it is there, as another package brings it along."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.support.layouts import make_layout
from tests.support.sources import ROOT
from washp2p.config.config import RunConfig
from washp2p.runfolder.rundir import read_summary
from workers.simulation.simulate import differences

PAGE = (ROOT / "docs" / "new-strategy.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
ENTRY = re.search(r"```toml\n\[project.entry-points.\"(.*?)\"\]\n(.*?) = \"(.*?)\"\n```", PAGE)


@pytest.fixture
def installed(tmp_path):
    """The environment of a process to which the package is installed."""
    site = tmp_path / "site"
    about = site / "my_package-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "my_package.py").write_text(CODE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    group, name, target = ENTRY.groups()
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def washp2p(*arguments, environment):
    return subprocess.run(
        [sys.executable, "-m", "washp2p", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_takes_under_40_lines():
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len(lines) < 40


def test_values_move_one_place_round_the_ring():
    names: dict = {}
    exec(CODE, names)
    layout = make_layout([[9, 3], [12], [4]])
    n = 4
    held = np.arange(n * layout.size).reshape(n, -1)
    plans = []
    for position in range(n):
        strategy = names["Ring"](RunConfig.resolve(n=n, p=0.7))
        strategy.prepare(layout, n, position)
        plans.append(strategy.plan(5))
    (selected,) = {tuple(plan.send.indices) for plan in plans}
    assert 0 < len(selected) < layout.values
    now = held.copy()
    for me, plan in enumerate(plans):
        ((peer, begin, end),) = plan.receive.parts
        assert (me, begin, end) in plans[peer].send.parts
        now[me, plan.receive.indices] = held[peer, plan.receive.indices]
    expected = held.copy()
    expected[:, list(selected)] = np.roll(held[:, list(selected)], -1, axis=0)
    assert (now == expected).all()


def test_it_trains_digits_and_agrees_with_its_simulation(installed, tmp_path):
    options = ["--n=3", "--method=ring", "--p=0.05", "--epochs=2", "--max-delay=0"]
    run, simulated = tmp_path / "run", tmp_path / "simulated"
    for command, folder in (("run", run), ("simulate", simulated)):
        done = washp2p(command, *options, f"--run-dir={folder}", environment=installed)
        assert done.returncode == 0, done.stdout + done.stderr
    assert differences(simulated, run) == []
    summary, expected = map(read_summary, (run, simulated))
    for row, other in zip(summary["bytes"], expected["bytes"], strict=True):
        assert row["payload"] == row["expected_payload"] == other["payload"]
        assert row["payload"] == pytest.approx(row["theory"], rel=0.1)
    assert summary["accuracy"]["ensemble"] - summary["accuracy"]["averaged"] < 10


def test_who_has_not_installed_it_hears_so(tmp_path):
    done = washp2p(
        "run", "--n=3", "--method=ring", f"--run-dir={tmp_path / 'run'}", environment=None
    )
    assert done.returncode == 2
    assert "--method is 'ring'; expected one of wash, wash-opt" in done.stderr
