"""What TensorBoard reads back is what was told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from coordinator.watch.scalars import Scalars
from tests.support.scalars import series
from tests.support.sources import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_series_for_each_member_and_one_for_all(tmp_path):
    scalars = Scalars(tmp_path)
    for number in (10, 20):
        scalars.metrics({"member": 1, "round": number, "loss": 1 / number, "note": "x"})
        row = {"member": 1, "round": number, "bytes": 5 * number, "lost": 0, "host": "h"}
        scalars.point({"round": number, "distance": 0.5, "loss": None}, [row])
    scalars.metrics({"member": 0, "loss": 3.0})  # no round: nowhere to draw it
    scalars.close()
    assert {path.name for path in tmp_path.iterdir()} == {"member-1", "population"}
    assert series(tmp_path / "population") == {"population/distance": [(10, 0.5), (20, 0.5)]}
    assert series(tmp_path / "member-1") == {
        "training/loss": [(10, 0.1), (20, 0.05)],
        "exchange/bytes": [(10, 50.0), (20, 100.0)],
        "exchange/lost": [(10, 0.0), (20, 0.0)],
    }


def test_it_needs_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from coordinator.watch.scalars import Scalars\n"
        f"Scalars(Path({str(tmp_path)!r})).metrics({{'member': 0, 'round': 1, 'loss': 1.0}})\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
