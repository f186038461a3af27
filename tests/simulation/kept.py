"""Runs by which the simulator has found faults, by what was wrong: the faults of `mutants.py`.

Faults and rounds that were not needed to find them are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.simulation.scenarios import Fault, Scenario

_READ = json.loads(Path(__file__).with_suffix(".json").read_text())
KEPT = {
    what: Scenario(**run)._replace(faults=tuple(Fault(*fault) for fault in run["faults"]))
    for what, run in _READ.items()
}
