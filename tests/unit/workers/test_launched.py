"""What torchrun, srun and Kubernetes say of a process."""

from __future__ import annotations

import pytest

from washp2p.errors import UsageError
from workers.launched import Launched, launched

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "host"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, SRUN | TORCHRUN])
def test_rank_and_device_are_the_launchers(environment):
    place = launched(environment)
    assert place == Launched(rank=5, local=1, world=8)
    assert [place.device(count) for count in (0, 1, 4)] == ["", "cuda:0", "cuda:1"]


def test_a_pod_of_an_indexed_job_has_its_number_and_the_devices_it_sees():
    place = launched({"JOB_COMPLETION_INDEX": "3"})
    assert place.rank == 3
    assert place.device(1) == "cuda:0"
    assert launched({"JOB_COMPLETION_INDEX": "1", **TORCHRUN}) == launched(TORCHRUN)
    with pytest.raises(UsageError, match="expected the number of a pod"):
        launched({"JOB_COMPLETION_INDEX": "three"})


def test_who_was_launched_by_nobody_reads_nothing():
    assert launched({"RANK": "5", "SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "8"}, {"LOCAL_RANK": "-1"}])
def test_what_makes_no_sense_is_named(wrong):
    with pytest.raises(UsageError, match=r"torchrun says RANK=.*; expected ranks below"):
        launched(TORCHRUN | wrong)
