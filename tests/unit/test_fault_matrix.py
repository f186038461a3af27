"""What befalls a member, at which point, under which method: the others keep all promises."""

from __future__ import annotations

import pytest

from tests.simulation.checks import check
from washp2p.rounds import hold_points
from washp2p.runfolder.runlog import Jump
from washp2p.testing import SimulatedRun

METHODS = {
    "wash": {"p": 0.2},
    "late": {"method": "wash", "p": 0.2, "late": "difference", "max_delay": "3"},
    "none": {"method": "wash", "p": 0.2, "max_delay": "none"},
    "wash-opt": {"method": "wash-opt", "p": 0.2},
    "sparta": {"method": "sparta", "p": 0.2},
    "papa": {"method": "papa", "alpha": 0.9, "every": 3},
}
LONG = 10.0
"""Seconds of a fault: enough for whoever is cut off, or stopped, to be dropped."""
FAULTS = {
    "killed": lambda run, number: run.faults.kill_now(number),
    "stopped": lambda run, number: run.faults.stop_now(number, seconds=LONG),
    "cut off": lambda run, number: run.faults.isolate(number, seconds=LONG),
    "cut off one way": lambda run, number: run.faults.isolate(number, seconds=LONG, both=False),
}
POINTS = [
    (hold_points.STARTING, 0.0),
    (hold_points.BEFORE_SEND, 1.0),
    (hold_points.AFTER_SEND, 1.0),
    (hold_points.APPLYING, 1.0),
    (hold_points.AVERAGING, 0.0),
]
"""Where a member is lost, and from when on."""
VICTIM = 1


@pytest.fixture(params=METHODS)
def options(request):
    return {"patience": 2.0, "max_delay": "0"} | METHODS[request.param]


def befalls(run, point, fault, *, worker=VICTIM, after=0.0):
    """Let `fault` befall a worker at a point, reached later than at the time `after`."""

    def befall(number):
        FAULTS[fault](run, number)

    run.events.at(after, lambda: run.at_point(point, befall, worker=worker))


def survivors(run):
    """The workers that have the average, by number."""
    return {number for number, p in run.processes.items() if p.averaged is not None}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("point", "after"), POINTS)
def test_the_others_go_on_without_it(options, point, after, fault):
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    befalls(run, point, fault, after=after)
    run.finish()
    check(run)
    assert survivors(run) == {0, 2}


@pytest.mark.parametrize("fault", FAULTS)
def test_while_it_joins(options, fault):
    """Its place is free again."""
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    befalls(run, hold_points.JOINING, fault)
    run.join(at=5.0)
    run.finish()
    check(run)
    assert survivors(run) == {0, 2, 3}


@pytest.mark.parametrize("fault", FAULTS)
def test_while_it_gives_a_snapshot(options, fault):
    run = SimulatedRun(seed=5, n=3, room=1, rounds=200, **options)
    befalls(run, hold_points.GIVING, fault, worker=-1)
    run.join(at=3.5)
    run.finish()
    check(run)
    assert len(run.faults.disturbed) == 1
    assert survivors(run) == {0, 1, 2, 3} - run.faults.disturbed


@pytest.mark.parametrize("fault", FAULTS)
def test_while_it_fetches_a_snapshot(options, fault):
    run = SimulatedRun(seed=5, n=3, room=1, rounds=100, **options)
    befalls(run, hold_points.RECEIVING, fault, worker=3)
    run.join(at=3.5)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}


@pytest.mark.parametrize("phase", [0.06, 0.5, 2.0])
@pytest.mark.parametrize("messages", range(3, 30, 4))
def test_the_coordinator_is_killed_and_replaced(options, phase, messages):
    """Before any of its messages: nobody is lost, and no value is."""
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    run.faults.kill_coordinator_in_act(messages, seconds=phase)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("at", [1.0, 1.5, 2.5])
def test_all_are_killed_and_the_run_goes_on(options, at, power):
    run = SimulatedRun(seed=5, n=3, rounds=120, checkpoint_minutes=0.5 / 60, **options)
    run.faults.kill_all(at=at, seconds=1.0, power=power)
    run.finish()
    check(run)
    assert len(survivors(run)) == 3


def test_all_are_killed_twice_and_a_coordinator_while_they_come_back(options):
    run = SimulatedRun(seed=5, n=3, rounds=120, checkpoint_minutes=0.5 / 60, **options)
    run.faults.kill_all(at=1.5, seconds=1.0)
    run.faults.kill_coordinator(at=2.55, seconds=0.5)
    run.faults.kill_all(at=4.5, seconds=1.0)
    run.finish()
    check(run)
    assert len(survivors(run)) == 3


def test_a_link_that_stays_broken_while_all_average(options):
    """Two kept each other waiting: one of them is dropped."""
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    run.at_point(
        hold_points.AVERAGING, lambda _: run.faults.cut(1, 2, at=run.events.now, seconds=100.0)
    )
    run.finish()
    check(run)
    assert survivors(run) in ({0, 1}, {0, 2})


def test_one_that_cannot_reach_the_first_member_gets_the_first_state_elsewhere(options):
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)

    def befall(_):
        by_member = {process.member: number for number, process in run.processes.items()}
        run.faults.cut(by_member[0], by_member[2], at=run.events.now, seconds=4.0)

    run.at_point(hold_points.STARTING, befall)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}


@pytest.mark.parametrize("policy", ["reset", "drop", "stop"])
def test_one_that_diverges_does_not_poison_the_others(options, policy):
    run = SimulatedRun(seed=5, n=3, rounds=60, on_divergence=policy, **options)
    run.faults.diverge(VICTIM, at=1.0)
    run.finish()
    if policy == "stop":
        assert run.coordinator.end.code == 1
        assert not survivors(run)
    else:
        check(run)
        assert survivors(run) == {0, 2}


def test_nobody_begins_with_the_state_of_one_that_has_diverged(options):
    run = SimulatedRun(seed=5, n=1, room=1, rounds=200, **options)
    run.faults.diverge(0, at=2.5)
    run.join(at=4.0)
    run.finish()
    assert run.coordinator.end.code == 1
    assert "sent values that are not finite" in run.coordinator.end.reason
    assert not survivors(run)


def test_one_that_has_diverged_unnoticed_is_not_averaged():
    run = SimulatedRun(seed=5, n=2, rounds=60, p=0.0, patience=2.0)
    run.faults.diverge(VICTIM, at=1.0)
    run.finish()
    assert survivors(run) == {0}
    assert "not all of its parameters are numbers" in str(run.processes[VICTIM].error)


def test_one_comes_late(options):
    run = SimulatedRun(seed=5, n=3, room=1, rounds=200, **options)
    run.join(at=4.0)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2, 3}
    if options["max_delay"] != "none":  # where the slowest may fall behind
        assert not any(isinstance(r, Jump) for m in run.members for r in run.records(m))


def test_members_stop_when_their_coordinator_stays_away(options):
    run = SimulatedRun(seed=5, n=3, rounds=200, **options)
    run.faults.kill_coordinator(at=1.0, seconds=1e6)
    run.finish()
    assert not survivors(run)
    for process in run.processes.values():
        assert "has been gone for 120 s" in str(process.error)


def test_members_that_died_while_their_coordinator_was_replaced_are_left_behind(options):
    run = SimulatedRun(seed=5, n=3, rounds=100, **options)
    run.faults.kill_coordinator(at=1.0, seconds=0.5)
    run.faults.kill(VICTIM, at=1.2)
    run.finish()
    check(run)
    assert survivors(run) == {0, 2}


def test_who_is_busy_is_waited_for_by_another_coordinator_too(options):
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    run.faults.occupy(VICTIM, at=1.0, seconds=60.0)
    run.faults.kill_coordinator(at=2.0, seconds=0.5)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}


def test_who_is_slow_without_saying_so_is_dropped_by_those_who_wait(options):
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    run.faults.slow_down(VICTIM, at=1.0, seconds=60.0)
    run.finish()
    check(run)
    assert survivors(run) == {0, 2}


def test_clocks_that_jump_cost_nobody_anything(options):
    run = SimulatedRun(seed=5, n=3, rounds=60, **options)
    run.faults.put_clock_forward(VICTIM, at=1.0, seconds=60.0)
    run.faults.put_coordinators_clock_forward(at=2.0, seconds=60.0)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}


def test_full_disks_do_not_end_a_run(options):
    run = SimulatedRun(seed=5, n=3, rounds=60, checkpoint_minutes=0.5 / 60, **options)
    run.faults.fill_disk(VICTIM, at=1.0, seconds=1.0)
    run.faults.fill_disk(2, at=1.0, seconds=0.1, logs=True)
    run.faults.fill_journal(at=1.0, seconds=1.5)
    run.finish()
    check(run)
    assert survivors(run) == {0, 1, 2}
    assert [process.log.has_gap for process in run.processes.values()] == [False, False, True]
    assert any("the run goes on, but a coordinator that died now" in text for text in run.told)
    assert any("is written again" in text for text in run.told)
