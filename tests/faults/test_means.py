"""Members lost, late or resumed where means are taken; a replay of their logs has their bits."""

from __future__ import annotations

import json
import signal

import pytest
from safetensors.torch import load_file

from tests.support.faults import Story
from tests.support.processes import replay
from washp2p.rounds import hold_points
from washp2p.runfolder import rundir
from workers.simulation.simulate import differences, simulate
from workers.training.data import load_data

FLAGS = ("--n=3", "--p=0.05", "--patience=2", "--track-consensus=4")
EACH = {
    "sparta": ("--method=sparta",),
    "papa": ("--method=papa", "--every=2", "--alpha=0.9"),
    "papa-2": ("--method=papa-2", "--every=1"),
    "papa-all": ("--method=papa-all", "--every=1", "--repair=1"),
}
"""Methods, and such settings that round 40 is one in which a mean is taken."""


def surveys(folder):
    return [json.loads(line) for line in (folder / rundir.CONSENSUS).read_text().splitlines()]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["papa-all"])
@pytest.mark.parametrize("point", [hold_points.AFTER_SEND])
def test_one_is_killed(here, tmp_path, method, point):
    coordinator = here.coordinator(*FLAGS, *EACH[method], "--epochs=4")
    workers = [here.worker() for _ in range(2)]
    victim = here.worker((point, 40))
    assert victim.wait_until_held() == 40
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert [worker.wait() for worker in workers] == [0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = Story(here.folder)
    story.assert_rosters_agree()
    assert len(story.summary["averaged_over"]) == 2
    if point != hold_points.APPLYING or method != "papa-2":
        lost = {why for row in story.summary["bytes"] for why in row["lost"]}
        assert lost <= {"sender dropped", "link broken"}
    assert replay(here.folder, tmp_path) == []
    assert [found["members"] for found in surveys(here.folder)].count(2) > 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["papa-all"])
def test_one_diverges(here, method):
    """It is named, dropped, and poisons neither means, nor repaired means, nor surveys."""
    flags = (*FLAGS[:3], *EACH[method], "--track-consensus=1", "--epochs=8")
    coordinator = here.coordinator(*flags, "--on-divergence=drop")
    workers = [here.worker() for _ in range(2)]
    sick = here.worker(("poisoned", 80))
    coordinator.until("sent values that are not finite")
    assert sick.wait() == 2
    assert [worker.wait() for worker in workers] == [0, 0]
    assert coordinator.wait() == 0, coordinator.text
    summary = Story(here.folder).summary
    assert len(summary["averaged_over"]) == 2
    for file in here.folder.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    found = surveys(here.folder)
    assert {one["members"] for one in found} == {2, 3}
    assert found[-1]["round"] == summary["rounds"]


@pytest.mark.timeout(60)
def test_a_newcomer_does_not_wait_for_frames_where_nobody_sends(here):
    coordinator = here.coordinator(
        "--n=3",
        "--min-n=2",
        "--max-delay=none",
        "--until=2",
        "--epochs=60",
        "--lr=0.02",
        "--patience=1",
    )
    story = here.come_late(coordinator, "epoch 5")
    joined = story.joined()[2].round
    row = next(row for row in story.summary["bytes"] if row["member"] == 2)
    assert row["steps"] > 0.5 * (story.summary["rounds"] - joined)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["papa"])
def test_a_power_cut(here, tmp_path, method):
    """Going on from a checkpoint: the bits of a run that was never interrupted."""
    flags = (*FLAGS, *EACH[method], "--epochs=3", "--checkpoint-epochs=1")
    here.coordinator(*flags)
    workers = [here.worker((hold_points.BEFORE_SEND, 80)) for _ in range(3)]
    for worker in workers:
        worker.wait_until_held()
    for worker in workers:
        worker.signal(signal.SIGKILL)
        worker.wait()
    here.coordinators[-1].kill()
    second = here.coordinator(resume=True)
    workers = [here.worker() for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert second.wait() == 0, second.text
    config, reference = rundir.read_config(here.folder), tmp_path / "reference"
    data = load_data(config, tmp_path, download=False)
    simulate(config, data, reference, on_epoch=lambda _: None)
    assert differences(reference, here.folder) == []
    found = surveys(here.folder)
    assert [one["round"] for one in found] == list(range(4, 121, 4))
    assert [one["round"] for one in found if one["exact"]] == [40, 80, 120]
