"""The matrix of faults, run and recorded: how each ends, and how many values it costs.

python -m tests.faults
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from benchmarks.record import record
from tests.support.faults import FAULTS

WHERE = {
    "at_the_start[joining": "joining",
    "at_the_start[starting": "fetching or serving the first state",
    "in_training[before send": "before it sends a round",
    "in_training[after send": "after it has sent, before it receives",
    "in_training[applying": "before it applies",
    "while_it_gives_a_snapshot[": "giving a snapshot",
    "while_it_fetches_a_snapshot[": "fetching a snapshot",
    "while_all_average[": "before the average",
}


def outcome(case):
    """Of one test, in a word."""
    for child in case:
        if child.tag in {"failure", "error", "skipped"}:
            return child.tag
    lost = [int(p.get("value")) for p in case.iter("property")]
    return f"passed, {lost[0]:,} lost" if lost else "passed"


def main():
    """Run the tests, fill the table."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        command += ["tests/faults/test_members.py", f"--junitxml={report}"]
        code = subprocess.run(command, check=False).returncode
        cases = list(ET.parse(report).iter("testcase"))
    found = {case.get("name").removeprefix("test_"): outcome(case) for case in cases}
    rows = []
    for begin, where in WHERE.items():
        cells = [
            next(v for k, v in found.items() if re.match(rf"{re.escape(begin)}-?{f}\]", k))
            for f in FAULTS
        ]
        rows.append([where, *cells])
    record(
        "faults",
        "One of three members lost at each point of its life, in each way",
        ["held", *FAULTS],
        rows,
        "Digits, lockstep, p = 0.05, `--patience 3`. Lost: values that members were owed and never "
        "got, all told, equal to what their logs and the plans say. Of all of "
        f"tests/faults/test_members.py {sum(v.startswith('passed') for v in found.values())} of "
        f"{len(found)} passed.",
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
