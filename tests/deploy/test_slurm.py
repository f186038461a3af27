"""deploy/slurm/wash.sbatch under a real Slurm: one node, daemons of our own, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.containers import DEPLOY, ran
from tests.support.polling import eventually
from tests.support.sources import ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel")
LACKING = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"Slurm is not installed: no {', '.join(LACKING)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root, to start Slurm's daemons"),
    pytest.mark.timeout(300),
]

CONFIGURATION = """
ClusterName=washp2p-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """Slurm on this machine; `run` works in a folder of its own, which all "nodes" share."""

    def __init__(self, folder):
        self._folder = folder
        self.work = folder / "work"
        for name in ("state", "spool", "work"):
            (folder / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        configuration = CONFIGURATION.format(
            folder=folder, host=host, ports=free_ports(2), cpus=os.cpu_count()
        )
        (folder / "slurm.conf").write_text(configuration)
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        }
        files = ("socket", "pid", "log", "seed")
        flags = [f"--{name}-file={folder}/munge.{name}" for name in files[1:]]
        flags += [f"--key-file={key}", f"--socket={folder}/munge.socket", "--force"]
        self._daemons = []
        for command in (
            ["munged", "--foreground", *flags],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            with (folder / f"{command[0]}.out").open("wb") as output:
                daemon = subprocess.Popen(
                    command, env=self.environment, stdout=output, stderr=output
                )
            self._daemons.append(daemon)
            if command[0] == "munged":
                eventually((folder / "munge.socket").exists, 60)
        eventually(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), 60)

    def run(self, *command, **options):
        return ran(*command, env=self.environment, cwd=self.work, **options)

    def submit(self, *flags, **variables):
        """The number of a job of three tasks."""
        command = ["sbatch", "--parsable", "--ntasks=3", "--overcommit"]
        command += ["--export=ALL", str(DEPLOY / "slurm" / "wash.sbatch"), *flags]
        environment = {**self.environment, **variables}
        return ran(*command, env=environment, cwd=self.work).strip()

    def ended(self, job):
        """What a job printed, and its exit code, once it has ended."""

        def shown():
            words = self.run("scontrol", "show", "job", job).split()
            facts = dict(word.partition("=")[::2] for word in words if "=" in word)
            return facts["JobState"] not in {"PENDING", "RUNNING", "COMPLETING"} and facts

        code = int(eventually(shown, 200)["ExitCode"].partition(":")[0])
        return (self.work / f"wash-{job}.log").read_text(), code

    def close(self):
        self.run("scancel", "--user=root", check=False)
        eventually(lambda: not self.run("squeue", "-h", check=False).strip(), 60)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory() as folder:  # munge wants a path that nobody else can write
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            made.close()


def test_a_job_trains_a_population(cluster):
    text, code = cluster.ended(cluster.submit("--epochs=2"))
    assert code == 0, text
    summary = json.loads((cluster.work / "runs/slurm-1/summary.json").read_text())
    assert summary["averaged_over"] == [0, 1, 2]  # the tasks' own numbers
    assert (cluster.work / "runs/slurm-1/averaged.safetensors").exists()
    assert "Averaged" in text
    keys = cluster.work / "runs/slurm-1.keys"
    assert [path.stat().st_mode & 0o777 for path in sorted(keys.iterdir())] == [0o600, 0o600]


def test_a_job_that_is_cancelled_keeps_its_checkpoints_and_another_goes_on(cluster):
    flags = ("--epochs=30", "--lr=0.02", "--checkpoint-epochs=2")
    job = cluster.submit(*flags)
    checkpoints = cluster.work / f"runs/slurm-{job}/checkpoints"
    eventually(lambda: list(checkpoints.glob("*/*.safetensors")), 120)
    cluster.run("scancel", "--batch", "--signal=TERM", job)  # as before the time limit
    text, code = cluster.ended(job)
    assert code == 130, text
    assert "go on with --resume" in text
    assert len(list(checkpoints.glob("*/*.safetensors"))) >= 3
    text, code = cluster.ended(cluster.submit(*flags, RESUME=f"runs/slurm-{job}"))
    assert code == 0, text
    assert "3 members go on from their checkpoints of round" in text


def test_a_coordinator_that_cannot_begin_ends_the_job_at_once(cluster):
    text, code = cluster.ended(cluster.submit("--p=7"))
    assert code == 2
    assert "--p is 7.0; expected 0.0 to 1.0" in text
