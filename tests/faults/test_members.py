"""Members that are killed, stopped and cut off, at every point of their lives.

The same is asserted of each: the others finish, in a roster that changed at one round for all; what
they lost is what their logs say, to the value; and a replay of the logs ends with their bits.
"""

from __future__ import annotations

import re
import signal
from multiprocessing.connection import wait

import pytest
from safetensors.torch import load_file

from tests.support.faults import Story
from tests.support.polling import eventually
from tests.support.processes import linked_by, replay
from washp2p.protocol.layout import Layout
from washp2p.protocol.roster import Roster
from washp2p.rounds import hold_points
from washp2p.runfolder import rundir
from washp2p.runfolder.runlog import Record, read_log
from workers.training.data import load_data
from workers.training.trainer import Trainer

FLAGS = ("--n=3", "--p=0.05", "--max-delay=0", "--patience=3")
HELD_IN = 30
"""The round in which a member is held, where the point is one of a round."""


def layout_of(config, data):
    import torch

    from washp2p.model.store import Store

    trainer = Trainer(config, data, 0, torch.device("cpu"))
    return Store(trainer.model, trainer.optimizer).layout


def check(population, tmp_path, survivors):
    """What must hold of every run with a fault in it."""
    story = Story(population.folder)
    story.assert_rosters_agree()
    data = load_data(story.config, tmp_path, download=False)
    layout = layout_of(story.config, data)
    assert isinstance(layout, Layout)
    for row in story.summary["bytes"]:
        assert row["expired_values"] == story.lost_values(row["member"], layout)
    assert set(survivors) <= set(story.summary["averaged_over"])
    assert replay(population.folder, tmp_path) == []
    return story


def strike(population, worker, fault):
    """Do it to a worker that is held, which then goes on as far as it can."""
    if fault == "SIGKILL":
        worker.signal(signal.SIGKILL)
    elif fault == "SIGSTOP":
        worker.signal(signal.SIGSTOP)
    else:
        population.cut(worker, both_ways=fault == "cut both ways")
    worker.let_go()


def heal(population, worker, fault):
    if fault == "SIGSTOP":
        worker.signal(signal.SIGCONT)
    elif fault != "SIGKILL":
        population.restore(worker, both_ways=fault == "cut both ways")


def victim_of(coordinator, worker):
    """The MemberId of a worker, from what the coordinator has printed."""
    pattern = rf"member (\d+) \(\S+, process {worker.process.pid}\)"
    return int(re.search(pattern, coordinator.text)[1])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("point", "fault", "transport"),
    [
        (hold_points.BEFORE_SEND, "SIGKILL", "auto"),
        (hold_points.AFTER_SEND, "SIGSTOP", "auto"),
        (hold_points.APPLYING, "cut both ways", "auto"),
        (hold_points.APPLYING, "SIGKILL", "torch"),
    ],
)
def test_in_training(request, tmp_path, point, fault, transport):
    population = request.getfixturevalue("apart" if "cut" in fault else "here")
    coordinator = population.coordinator(*FLAGS, "--epochs=6", f"--transport={transport}")
    workers = [population.worker(slow=fault != "SIGKILL") for _ in range(2)]
    victim = population.worker((point, HELD_IN))
    assert victim.wait_until_held() == HELD_IN
    strike(population, victim, fault)
    line = coordinator.until("going on with 2 of 3 members")
    lost = victim_of(coordinator, victim)
    first = int(re.search(r"from round (\d+) on", line)[1])
    heal(population, victim, fault)
    if fault == "SIGKILL":
        assert victim.wait() == -signal.SIGKILL
        expected = set(range(3)) - {lost}
    else:
        assert int(re.search(r"from round (\d+)", coordinator.until("takes part"))[1]) >= first
        population.hurry()
        assert victim.wait() == 0
        assert "joining again" in victim.text
        expected = set(range(4)) - {lost}
    assert [worker.wait() for worker in workers] == [0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = check(population, tmp_path, expected)
    if transport == "torch":
        assert set(linked_by(story.summary).values()) == {"gloo"}
    assert set(story.summary["averaged_over"]) == expected
    assert story.rosters[1].first == first
    assert story.rosters[1].members == tuple(sorted(set(range(3)) - {lost}))
    assert story.summary["rounds"] >= first + 50
    assert story.joined().keys() == expected - set(range(3))
    (departed,) = story.summary["departed"]
    assert (departed["member"], departed["round"]) == (lost, first)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["cut both ways"])
def test_while_it_gives_a_snapshot(request, tmp_path, fault):
    """The newcomer turns to another donor."""
    population = request.getfixturevalue("apart" if "cut" in fault else "here")
    coordinator = population.coordinator(*FLAGS, "--n=4", "--min-n=3", "--epochs=6")
    workers = [population.worker((hold_points.GIVING, 0), slow=True) for _ in range(3)]
    coordinator.until("training begins")
    newcomer = population.worker()
    coordinator.until("fetches a snapshot from")
    held = wait([worker.pipe for worker in workers], 20)
    (donor,) = [worker for worker in workers if worker.pipe in held]
    others = [worker for worker in workers if worker is not donor]
    for other in others:
        other.let_go()  # in advance
    strike(population, donor, fault)
    coordinator.until("fetches a snapshot from")
    coordinator.until("takes part")
    heal(population, donor, fault)
    if fault != "SIGKILL":
        coordinator.until("takes part")
    population.hurry()
    assert donor.wait() == (-signal.SIGKILL if fault == "SIGKILL" else 0)
    assert [worker.wait() for worker in (*others, newcomer)] == [0, 0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = check(population, tmp_path, {3})
    lost = victim_of(coordinator, donor)
    joined = story.joined()
    assert joined[3].donor != lost
    assert joined[3].round >= 1
    assert len(story.summary["averaged_over"]) == (3 if fault == "SIGKILL" else 4)
    (row,) = [row for row in story.summary["bytes"] if row["member"] == joined[3].donor]
    assert any(
        link["kind"] == "state transfer" and link["peer"] == 3 and link["payload"] > 2 * 4 * 10_000
        for link in row["links"]
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["SIGKILL"])
def test_while_all_average(request, tmp_path, fault):
    population = request.getfixturevalue("apart" if "cut" in fault else "here")
    coordinator = population.coordinator(*FLAGS, "--epochs=2")
    *workers, victim = [population.worker((hold_points.AVERAGING, 0)) for _ in range(3)]
    for worker in (*workers, victim):
        worker.wait_until_held(30)
    strike(population, victim, fault)
    coordinator.until("going on with 2 of 3 members")
    heal(population, victim, fault)
    assert victim.wait() == (-signal.SIGKILL if fault == "SIGKILL" else 1)
    for worker in workers:
        worker.let_go()
    assert [worker.wait() for worker in workers] == [0, 0], [worker.text for worker in workers]
    assert coordinator.wait() == 0, coordinator.text
    lost = victim_of(coordinator, victim)
    story = check(population, tmp_path, set(range(3)) - {lost})
    assert lost not in story.summary["averaged_over"]
    assert lost in story.logs
    assert story.summary["lost_values"] == 0
    assert story.summary["accuracy"]["averaged"] > 50


def hear_again(run, member):
    """Whether a member of the first roster has lost values, and none in its last round."""
    log = read_log(rundir.log_file(run, member), [Roster(generation=0, peers=())])
    records = [record for record in log if isinstance(record, Record)]
    return any(record.lost for record in records) and not records[-1].lost


@pytest.mark.timeout(180)
def test_a_link_between_two_members_that_breaks_and_is_mended(apart, tmp_path):
    """Both live and the coordinator sees both: nobody is dropped, each other's values are lost."""
    coordinator = apart.coordinator(*FLAGS, "--epochs=16")
    one, other = apart.worker((hold_points.BEFORE_SEND, HELD_IN), slow=True), apart.worker()
    third = apart.worker()
    assert one.wait_until_held() == HELD_IN
    apart.cut_between(one, other)
    one.let_go()
    coordinator.until("epoch 4")
    apart.restore_between(one, other)
    members = [victim_of(coordinator, worker) for worker in (one, other)]
    eventually(lambda: all(hear_again(apart.folder, m) for m in members), 60)
    apart.hurry()
    assert [worker.wait() for worker in (one, other, third)] == [0, 0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = check(apart, tmp_path, {0, 1, 2})
    assert story.summary["departed"] == []
    lost = {row["member"]: row["expired_values"] for row in story.summary["bytes"]}
    assert lost[victim_of(coordinator, third)] == 0
    for worker, peer in ((one, other), (other, one)):
        me, it = victim_of(coordinator, worker), victim_of(coordinator, peer)
        assert lost[me] > 0
        rounds = [r for r in story.logs[me] if isinstance(r, Record)]
        assert all(record.lost in {(), (it,)} for record in rounds)
        assert sum(bool(record.lost) for record in rounds) > 50
        assert it in rounds[-1].applied  # heard again
        assert f"the link to member {it} is broken" in worker.text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", ["reset"])
def test_one_that_diverges_does_not_poison_the_others(here, policy):
    coordinator = here.coordinator(*FLAGS, "--epochs=6", f"--on-divergence={policy}")
    workers = [here.worker(slow=policy == "reset") for _ in range(2)]
    sick = here.worker(("poisoned", HELD_IN))
    if policy == "stop":
        assert coordinator.wait() == 1
        assert [worker.wait() for worker in (*workers, sick)] == [1, 1, 1]
        assert "values that are not finite (a lower --lr may help)" in workers[0].text
        return
    coordinator.until("sent values that are not finite")
    if policy == "reset":
        coordinator.until("takes part")
        here.hurry()
    assert sick.wait() == (0 if policy == "reset" else 2)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = Story(here.folder)
    story.assert_rosters_agree()
    lost = victim_of(coordinator, sick)
    joined = {3} if policy == "reset" else set()
    assert set(story.summary["averaged_over"]) == set(range(3)) - {lost} | joined
    assert sum(row["refused_values"] for row in story.summary["bytes"]) > 0
    for file in here.folder.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert story.summary["accuracy"]["averaged"] > 90


@pytest.mark.timeout(120)
def test_one_that_cannot_be_reached_any_more_is_left_out_of_the_evaluation(apart, tmp_path):
    coordinator = apart.coordinator(*FLAGS, "--epochs=2")
    workers = [apart.worker((hold_points.EVALUATING, 0)) for _ in range(3)]
    held = wait([worker.pipe for worker in workers], 60)
    (leader,) = [worker for worker in workers if worker.pipe in held]
    other = next(worker for worker in workers if worker is not leader)
    apart.cut_between(leader, other)
    leader.let_go()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = check(apart, tmp_path, {0, 1, 2})
    assert story.summary["averaged_over"] == [0, 1, 2]
    lost = victim_of(coordinator, other)
    assert story.summary["accuracy"]["over"] == [m for m in range(3) if m != lost]
