"""The examples, run as their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.integration.conftest import ROOT

EXAMPLES = {
    "plain.py": lambda address: [address],
    "timm_style.py": lambda address: [
        f"--washp2p={address}",
        "--amp",
        "--grad-accum-steps=2",
        "--torchcompile=eager",
    ],
}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_a_population(runs, name):
    coordinator = runs.coordinator("--n=2", "--p=0.05")
    command = [sys.executable, ROOT / "examples" / name, *EXAMPLES[name](coordinator.address)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=150)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert coordinator.wait(30) == 0, coordinator.text
    averaged = [float(re.search(r"averaged: (?:top1 )?([\d.]+)", text)[1]) for text in outputs]
    assert averaged[0] == averaged[1] > 90
    assert coordinator.summary["averaged_over"] == [0, 1]
    assert coordinator.summary["lost_values"] == 0


def test_the_script_in_timms_style_does_without_a_population():
    command = [sys.executable, ROOT / "examples" / "timm_style.py", "--epochs=2"]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "epoch 0: top1" in found.stdout
