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

from tests.support.faults import FAULTS, Story
from tests.support.processes import linked_by, replay
from washp2p.protocol.layout import Layout
from washp2p.rounds import hold_points
from washp2p.runfolder.runlog import Jump, Record
from workers.training.data import load_data
from workers.training.trainer import Trainer

FLAGS = ("--n=3", "--p=0.05", "--max-delay=0", "--patience=3")
HELD_IN = 30
"""The round in which a member is held, where the point is one of a round."""
IN_TRAINING = (hold_points.BEFORE_SEND, hold_points.AFTER_SEND, hold_points.APPLYING)
AT_START = (hold_points.JOINING, hold_points.STARTING)


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
    population.note("lost values", story.summary["lost_values"])
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
    ("fault", "transport"),
    [*((fault, "auto") for fault in FAULTS), ("SIGKILL", "torch"), ("SIGSTOP", "torch")],
)
@pytest.mark.parametrize("point", IN_TRAINING)
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
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", AT_START)
def test_at_the_start(request, tmp_path, point, fault):
    """Lost before the start it frees its place; lost after it, the others begin without it."""
    population = request.getfixturevalue("apart" if "cut" in fault else "here")
    coordinator = population.coordinator(*FLAGS, "--epochs=6")
    victim = population.worker((point, 0))
    coordinator.until("joined (1 of 3)")
    comes_late = point == hold_points.STARTING and fault != "SIGKILL"
    workers = [population.worker(slow=comes_late) for _ in range(2)]
    victim.wait_until_held(20)
    coordinator.until("joined (3 of 3)" if point == hold_points.JOINING else "fetch member")
    strike(population, victim, fault)
    if point == hold_points.JOINING:
        coordinator.until("waiting for 1 of 3 members")
        if fault == "SIGKILL":
            workers.append(population.worker())
    else:
        coordinator.until("going on with 2 of 3 members")
    heal(population, victim, fault)
    if comes_late:
        coordinator.until("takes part")
        population.hurry()
    assert victim.wait() == (-signal.SIGKILL if fault == "SIGKILL" else 0)
    assert [worker.wait() for worker in workers] == [0] * len(workers)
    assert coordinator.wait() == 0, coordinator.text
    story = check(population, tmp_path, {1, 2})
    assert 0 not in story.summary["averaged_over"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS)
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
@pytest.mark.parametrize("fault", FAULTS)
def test_while_it_fetches_a_snapshot(request, tmp_path, fault):
    """The others do not notice."""
    population = request.getfixturevalue("apart" if "cut" in fault else "here")
    coordinator = population.coordinator(*FLAGS, "--n=4", "--min-n=3", "--epochs=6")
    workers = [population.worker(slow=True) for _ in range(3)]
    coordinator.until("training begins")
    newcomer = population.worker((hold_points.RECEIVING, 0))
    newcomer.wait_until_held(20)
    strike(population, newcomer, fault)
    coordinator.until(f"process {newcomer.process.pid}) died")
    heal(population, newcomer, fault)
    if fault == "SIGKILL":
        assert newcomer.wait() == -signal.SIGKILL
        newcomer = population.worker()
    coordinator.until("takes part")
    population.hurry()
    assert [worker.wait() for worker in (*workers, newcomer)] == [0] * 4
    assert coordinator.wait() == 0, coordinator.text
    story = check(population, tmp_path, {0, 1, 2, 4})
    assert story.summary["lost_values"] == 0
    assert story.summary["departed"] == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", FAULTS)
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


@pytest.mark.timeout(180)
def test_a_link_between_two_members_that_breaks_and_is_mended(apart, tmp_path):
    """Both live and the coordinator sees both: nobody is dropped, each other's values are lost."""
    coordinator = apart.coordinator(*FLAGS, "--epochs=8")
    one, other = apart.worker((hold_points.BEFORE_SEND, HELD_IN), slow=True), apart.worker()
    third = apart.worker()
    assert one.wait_until_held() == HELD_IN
    apart.cut_between(one, other)
    one.let_go()
    coordinator.until("epoch 4")
    apart.restore_between(one, other)
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


@pytest.mark.timeout(180)
def test_a_link_between_two_members_that_stays_broken_in_the_average(apart, tmp_path):
    coordinator = apart.coordinator(*FLAGS, "--epochs=2")
    one, other = apart.worker((hold_points.AVERAGING, 0)), apart.worker()
    third = apart.worker()
    one.wait_until_held()
    apart.cut_between(one, other)
    one.let_go()
    coordinator.until("kept each other waiting too long")
    codes = {worker: worker.wait() for worker in (one, other, third)}
    assert sorted(codes.values()) == [0, 0, 1]
    assert codes[third] == 0
    assert coordinator.wait() == 0, coordinator.text
    story = check(apart, tmp_path, {victim_of(coordinator, third)})
    assert len(story.summary["averaged_over"]) == 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", ["reset", "drop", "stop"])
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
def test_one_that_cannot_reach_the_first_member_gets_the_first_state_elsewhere(apart, tmp_path):
    coordinator = apart.coordinator(*FLAGS, "--epochs=2")
    workers = [apart.worker((hold_points.JOINING, 0)) for _ in range(3)]
    for worker in workers:
        worker.wait_until_held()
    coordinator.until("joined (3 of 3)")
    first, _, last = sorted(workers, key=lambda worker: victim_of(coordinator, worker))
    apart.cut_between(last, first)
    for worker in workers:
        worker.let_go()
    coordinator.until("training begins")
    apart.restore_between(last, first)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0, coordinator.text
    story = check(apart, tmp_path, {0, 1, 2})
    assert story.summary["departed"] == []


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


@pytest.mark.timeout(120)
def test_a_newcomer_makes_nobody_jump(here, tmp_path):
    """Nobody waits for anybody: it begins where the others are, not where the seeds are."""
    coordinator = here.coordinator(
        *FLAGS, "--n=3", "--min-n=2", "--max-delay=none", "--expire=56", "--epochs=8"
    )
    story = here.come_late(coordinator, "epoch 2")
    first = story.joined()[2].round + 1
    over = []
    for member in (0, 1):
        step = at = 0
        for jump in (record for record in story.logs[member] if isinstance(record, Jump)):
            if at + jump.step - 1 - step < first <= jump.round:
                over.append(jump)
            step, at = jump.step, jump.round
    assert len(over) < 2, over  # the slower one may fall behind, the faster one was there
    assert replay(here.folder, tmp_path) == []


@pytest.mark.timeout(60)
def test_nobody_begins_with_the_state_of_one_that_has_diverged(here):
    coordinator = here.coordinator(*FLAGS, "--min-n=1", "--patience=0.5", "--epochs=1000")
    sick = here.worker(("poisoned", HELD_IN), "--wait=1")  # then there is no run to join again
    coordinator.until("epoch 2")
    newcomer = here.worker()
    coordinator.until("fetches a snapshot from member 0")
    assert coordinator.wait() == 1
    assert "member 0" in coordinator.text
    assert "sent values that are not finite" in coordinator.text
    assert all(worker.wait() for worker in (sick, newcomer))


@pytest.mark.timeout(60)
def test_one_that_has_diverged_unnoticed_is_not_averaged(here):
    coordinator = here.coordinator(*FLAGS, "--n=2", "--p=0", "--epochs=2")
    workers = [here.worker(), here.worker(("poisoned", HELD_IN))]
    assert [worker.wait() for worker in workers] == [0, 1]
    assert "not all of its parameters are numbers" in workers[1].text
    assert coordinator.wait() == 0, coordinator.text
    story = Story(here.folder)
    assert story.summary["averaged_over"] == [1 - victim_of(coordinator, workers[1])]
