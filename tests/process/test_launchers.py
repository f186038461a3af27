"""Launchers people already use, started for real."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.sources import ROOT

FLAGS = ("--epochs=1", "--p=0.1")


def test_torchrun_gives_each_process_its_member(runs):
    coordinator = runs.coordinator("--n=3", *FLAGS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3"]
    command += ["--tee=3", "-m", "workers", f"--coordinator={coordinator.address}"]
    found = subprocess.run(
        [*command, f"--run-dir={coordinator.folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert coordinator.wait(30) == 0, coordinator.text
    for rank in range(3):
        assert f"[default{rank}]:member {rank} of run run" in found.stdout
    assert coordinator.summary["averaged_over"] == [0, 1, 2]


@pytest.mark.timeout(120)
def test_srun_gives_each_process_its_member(runs):
    """No Slurm here: what it puts into the environment is all that is read of it."""
    coordinator = runs.coordinator("--n=2", *FLAGS)
    processes = []
    for rank in (1, 0):
        said = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2"}
        command = [sys.executable, "-m", "workers", f"--coordinator={coordinator.address}"]
        processes.append(
            subprocess.Popen(
                [*command, f"--run-dir={coordinator.folder}"],
                cwd=ROOT,
                env={**os.environ, **said},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        coordinator.until(f"member {rank} (")
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [f"member {rank} of run run" in outputs[1 - rank] for rank in (0, 1)] == [True, True]
    assert coordinator.wait(30) == 0


def test_washp2p_run_has_workers_take_turns_on_devices(tmp_path):
    command = [sys.executable, "-m", "washp2p", "run", "--n=2", "--devices=cpu,abacus"]
    found = subprocess.run(
        [*command, f"--run-dir={tmp_path / 'run'}", *FLAGS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 2
    assert "--device abacus: " in found.stderr
    logs = sorted((tmp_path / "run" / "log").glob("process-*.txt"))
    assert ["abacus" in log.read_text() for log in logs] == [False, True]
