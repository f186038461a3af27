"""The coordinator is killed in every state of a run, and another takes its place.

The population does not notice: in lockstep it ends with the bits of an undisturbed run.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.faults import Story
from tests.support.processes import replay
from washp2p.errors import UsageError
from washp2p.rounds import hold_points
from washp2p.runfolder.runlog import Record
from workers.simulation.simulate import differences, simulate
from workers.training.data import load_data

FLAGS = ("--n=3", "--p=0.05", "--max-delay=0", "--patience=3", "--epochs=4")


def assert_undisturbed(population, tmp_path):
    story = Story(population.folder)
    assert story.summary["departed"] == []
    assert story.summary["lost_values"] == 0
    assert [roster.generation for roster in story.rosters] == [0]
    for records in story.logs.values():
        assert [r.round for r in records if isinstance(r, Record)] == list(range(1, 161))
    data = load_data(story.config, tmp_path, download=False)
    reference = tmp_path / "reference"
    simulate(story.config, data, reference, on_epoch=lambda _: None)
    assert differences(reference, population.folder) == []
    return story


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("state", "point", "number"),
    [
        ("joined (3 of 3)", hold_points.JOINING, 0),
        ("epoch 2", hold_points.APPLYING, 80),
    ],
    ids=str,
)
def test_killed_and_replaced(here, tmp_path, state, point, number):
    """Killed while a member is held, it cannot have gone on; its members' states are known."""
    first = here.coordinator(*FLAGS)
    held = here.worker((point, number))
    workers = [held, *(here.worker() for _ in range(2))]
    first.until(state)
    held.wait_until_held()
    first.kill()
    second = here.coordinator()
    second.until("back after round")
    held.let_go()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert second.wait() == 0, second.text
    assert_undisturbed(here, tmp_path)


def test_one_run_has_one_coordinator_and_its_own_configuration(here):
    first = here.coordinator(*FLAGS)
    second = here.coordinator()
    assert second.wait() == 2
    assert "end the coordinator that runs there" in second.text
    first.kill()
    other = here.coordinator("--n=4")
    assert other.wait() == 2
    assert "--n is 4; the run there has 3" in other.text
    with pytest.raises(UsageError):
        Story(here.folder)


def test_a_run_that_was_stopped_is_over(here):
    first = here.coordinator(*FLAGS)
    first.process.terminate()
    assert first.wait() == 130
    second = here.coordinator()
    assert second.wait() == 2
    assert "has ended: the coordinator was interrupted; --resume it" in second.text
    third = here.coordinator(resume=True)
    assert third.wait() == 2
    assert "had not begun, there is nothing to go on from" in third.text


@pytest.mark.timeout(120)
def test_a_coordinator_that_hung_until_all_links_were_broken(here, tmp_path):
    """Its members are back before it has looked, or join again: none is lost for good."""
    coordinator = here.coordinator(*FLAGS, "--epochs=8")
    workers = [here.worker() for _ in range(3)]
    coordinator.until("epoch 2")
    coordinator.process.send_signal(signal.SIGSTOP)
    time.sleep(4)  # the fault itself: longer than a silent link is borne
    coordinator.process.send_signal(signal.SIGCONT)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = Story(here.folder)
    story.assert_rosters_agree()
    assert len(story.summary["averaged_over"]) == 3
    assert replay(here.folder, tmp_path) == []


@pytest.mark.timeout(120)
def test_a_coordinator_that_hung_and_was_then_replaced(here, tmp_path):
    """What members said to it meanwhile is lost; they wait for seeds, and say it again."""
    first = here.coordinator(*FLAGS)
    workers = [here.worker() for _ in range(3)]
    first.until("epoch 2")
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # the fault itself: all come to the end of their seeds
    first.kill()
    second = here.coordinator()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert second.wait() == 0, second.text
    assert_undisturbed(here, tmp_path)
