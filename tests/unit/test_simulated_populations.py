"""Populations in virtual time: each run keeps all promises, and is the same when repeated."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.simulation.checks import check
from tests.simulation.kept import KEPT
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenarios import scenario
from tests.support.calls import calls_of_a_round
from tests.support.sources import ROOT
from washp2p.errors import DroppedError
from washp2p.model.write_order import WriteOrder
from washp2p.rounds.round_loop import RoundLoop
from washp2p.testing import SimulatedRun, ToyTask


@pytest.mark.parametrize("seed", range(40))
def test_a_run_keeps_all_promises(seed):
    run = scenario(seed).run()
    run.finish()
    check(run)


@pytest.mark.parametrize("fault", KEPT)
def test_a_run_that_has_found_a_fault_keeps_all_promises(fault):
    run = KEPT[fault].run()
    run.finish()
    check(run)


def test_each_mutant_changes_one_place():
    for mutant in MUTANTS:
        for module, right, wrong in mutant.edits:
            source = importlib.util.find_spec(module).loader.get_source(module)
            assert source.count(right) == 1, mutant.breaks
            assert right != wrong


def test_a_run_can_be_repeated():
    runs = [scenario(7).run(), scenario(7).run()]
    for run in runs:
        run.finish()
    one, other = runs
    assert (one.events.now, one.events.done) == (other.events.now, other.events.done)
    assert one.coordinator.told == other.coordinator.told
    assert one.over == other.over
    for member, process in one.members.items():
        twin = other.members[member]
        assert process.log.records == twin.log.records
        for name, value in process.model.state_dict().items():
            theirs = twin.model.state_dict()[name]
            torch.testing.assert_close(value, theirs, rtol=0, atol=0, equal_nan=True)


def test_who_is_killed_is_not_in_the_average():
    run = SimulatedRun(seed=1, n=3, rounds=20, p=0.1)
    run.faults.kill(2, at=0.7)
    run.finish()
    (killed,) = (member for member, process in run.members.items() if process.averaged is None)
    assert run.over == tuple(member for member in range(3) if member != killed)
    assert not run.coordinator.end.code


class Poisoned(ToyTask):
    """Members 1 and 2 diverge at their step 20, for good."""

    def step(self, model, optimizer, member, number):
        if number >= 20 and member in {1, 2}:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
        super().step(model, optimizer, member, number)


@pytest.mark.parametrize("seed", range(5))
def test_who_diverges_is_dropped_and_tells_nothing_malformed(seed):
    run = SimulatedRun(seed=seed, n=4, rounds=60, task=Poisoned(), p=0.5)
    run.finish()
    assert run.over == (0, 3)
    assert run.coordinator.refused == []
    for member in (1, 2):
        assert isinstance(run.members[member].error, DroppedError)


def failing(seeds):
    """How many of the seeds' runs break a promise."""
    count = 0
    for seed in seeds:
        run = scenario(seed).run()
        try:
            run.finish()
            check(run)
        except AssertionError:
            count += 1
    return count


def test_an_older_write_that_overwrites_a_newer_one_is_found(monkeypatch):
    every = WriteOrder.free

    def all_free(self, indices, number):
        return every(self, indices, number) | True

    monkeypatch.setattr(WriteOrder, "free", all_free)
    assert failing(range(40))


def test_a_log_that_lacks_a_sender_is_found(monkeypatch):
    write = RoundLoop._log_applied

    def forgetful(self, applied):
        write(self, [one._replace(senders=one.senders[1:]) for one in applied])

    monkeypatch.setattr(RoundLoop, "_log_applied", forgetful)
    assert failing(range(5))


def test_the_calls_of_a_healthy_round_are_those_of_the_architecture():
    assert "\n".join(calls_of_a_round()) in (ROOT / "docs/architecture.md").read_text()
