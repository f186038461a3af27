"""The examples, run as their first lines say; and that of the package itself."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys

import pytest
import torch

import washp2p
from tests.support.processes import collect
from tests.support.sources import ROOT

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


@pytest.mark.alone
@pytest.mark.timeout(360)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_a_population(runs, name):
    coordinator = runs.coordinator("--n=2", "--p=0.05")
    command = [sys.executable, ROOT / "examples" / name, *EXAMPLES[name](coordinator.address)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert coordinator.wait(30) == 0, coordinator.text
    averaged = [float(re.search(r"averaged: (?:top1 )?([\d.]+)", text)[1]) for text in outputs]
    assert averaged[0] == averaged[1] > 90
    assert coordinator.summary["averaged_over"] == [0, 1]
    assert coordinator.summary["lost_values"] == 0


@pytest.mark.alone
def test_the_script_in_timms_style_does_without_a_population():
    command = [sys.executable, ROOT / "examples" / "timm_style.py", "--epochs=2"]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "epoch 0: top1" in found.stdout


def run_the_example(address, loader, queue):
    example = {"address": address, "loader": loader}
    queue.put(doctest.testmod(washp2p, extraglobs=example))


def test_the_first_example_works(runs):
    """That of the package, by two members and a coordinator."""
    generator = torch.Generator().manual_seed(0)
    loader = [(torch.randn(4, 8, generator=generator), torch.zeros(4).long()) for _ in range(5)]
    coordinator = runs.coordinator("--n=2", "--p=0.5")
    found = collect(run_the_example, [(coordinator.address, loader)] * 2)
    assert [(failed, tried > 4) for failed, tried in found] == [(0, True)] * 2
    assert coordinator.wait(30) == 0
    assert coordinator.summary["averaged_over"] == [0, 1]
