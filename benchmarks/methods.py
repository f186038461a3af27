"""What each method sends, measured, against its formula, its paper's count and all-reduce.

    python -m benchmarks.methods

Each row is one distributed run (`washp2p run`) on digits.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy import train
from benchmarks.record import record, run
from washp2p.protocol.ledger import Kind
from washp2p.reporting.report import amount, per_worker, sent_for

FLAGS = ["--n=5", "--epochs=10", "--max-delay=0", "--track-consensus=10"]
METHODS = (
    "--method=none",
    "--method=wash",
    "--method=wash --until=0.5",
    "--method=wash-opt",
    "--method=wash-opt --optimizer=adamw --lr=0.002",
    "--method=sparta",
    "--method=papa",
    "--method=papa-all",
    "--method=papa-all --repair=5",
    "--method=dart --every=1",
    "--method=papa-2 --every=1",
)


def main() -> None:
    """Run every method and record what it sent."""
    rows = []
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            summary: dict[str, Any] = train([*FLAGS, *method.split()], Path(folder) / "run")
        members = summary["bytes"]
        payload, theory, paper, ring = (
            per_worker(summary, key) for key in ("payload", "theory", "paper", "papa_all_reduce")
        )
        assert all(row["payload"] == row["expected_payload"] for row in members)
        beside = [
            mean(sent_for(row, [kind]) for row in members) for kind in (Kind.REPAIR, Kind.CONSENSUS)
        ]
        rows.append(
            [
                f"`{method.removeprefix('--method=')}`",
                amount(payload),
                amount(theory),
                f"{payload / theory:.3f}" if theory else "",
                amount(paper),
                f"{ring / payload:.2f}" if payload else "",
                *(amount(count) if count else "" for count in beside),
            ]
        )
    record(
        "methods",
        "Bytes of every method",
        [
            "method",
            "payload a worker",
            "its formula",
            "payload / formula",
            "its paper's count",
            "PAPA's all-reduce / payload",
            "REPAIR",
            "consensus",
        ],
        rows,
        f"Digits, the small CNN (10,314 parameters), {' '.join(FLAGS)}: 400 rounds. Payload is "
        "what the plans foresaw, to the byte. Formulas: docs/methods.md. PAPA's all-reduce is a "
        "ring all-reduce of all parameters every 10 steps; REPAIR and consensus (its surveys every "
        "10 rounds, of 4,096 parameters) are counted apart, headers included.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about ten minutes"))
