"""The promise of docs/reliability.md, with real processes: nothing wrong is silent or lost."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import washp2p
from tests.support.processes import FORKSERVER, collect
from washp2p.driver import joining
from washp2p.errors import DroppedError, JoinRefusedError, RunStoppedError, UsageError

STEPS = 20


def small(seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()


def joined(address, number, model=None, **options):
    model = model or small(number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, washp2p.attach(model, optimizer, address, **options)


def plain(state):
    return {name: value.numpy() for name, value in state.items()}


# Averages, and training after them


def average_each_epoch(address, number, queue):
    model, optimizer, member = joined(address, number)
    torch.manual_seed(100 + member.id)
    averages, own = [], []
    for _ in range(3):
        for _ in range(STEPS):
            step(model, optimizer)
        averages.append(plain(member.average()))
        own.append({name: value.numpy().copy() for name, value in model.state_dict().items()})
        assert averages[-1].keys() == plain(member.average()).keys()
    rounds = member.round
    member.close()
    queue.put((member.id, rounds, averages, own))


@pytest.mark.parametrize("delay", ["0", "auto"])
def test_one_may_average_at_any_time_and_train_on(runs, delay):
    coordinator = runs.coordinator("--n=3", "--p=0.2", f"--max-delay={delay}")
    found = sorted(collect(average_each_epoch, [(coordinator.address, n) for n in range(3)]))
    assert coordinator.wait() == 0
    assert coordinator.summary["averages"] == 3
    assert coordinator.summary["averaged_after"] == [3 * STEPS] * 3
    assert [rounds for _, rounds, _, _ in found] == [3 * STEPS] * 3
    for k in range(3):
        for name in found[0][3][k]:
            mean = sum(own[k][name].astype("float64") for _, _, _, own in found) / 3
            for _, _, averages, _ in found:
                assert (averages[k][name] == mean.astype("float32")).all(), (k, name)
    first, last = found[0][2][0], found[0][2][2]
    assert all((first[name] != last[name]).any() for name in first)


def average_unequally(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS + 5 * member.id):
        step(model, optimizer)
    member.average()
    try:
        step(model, optimizer)
    except UsageError as error:
        queue.put((member.id, str(error)))
    member.leave()


def test_training_on_after_averages_of_unequal_rounds_raises_on_all_by_name(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(average_unequally, [(coordinator.address, n) for n in range(2)]))
    for member in range(2):
        assert (
            "after unequal rounds: member 0 after round 20, member 1 after round 25"
            in (found[member])
        )


def end_early(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    member.average()
    try:
        if member.id:
            member.close()
        else:
            for _ in range(1000):
                step(model, optimizer)
            member.average()
        queue.put((member.id, "nothing"))
    except (RunStoppedError, UsageError) as error:
        queue.put((member.id, str(error)))
        member.leave()


def test_training_on_while_another_has_ended_is_said_by_name(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(end_early, [(coordinator.address, n) for n in range(2)]))
    assert "member 1 has ended" in found[0]


def interrupted(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    if member.id:
        time.sleep(1.5)
    else:
        threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tries = 0
    while True:
        tries += 1
        with contextlib.suppress(KeyboardInterrupt):
            state = plain(member.average())
            break
    member.close()
    queue.put((member.id, (tries, member.members, state)))


def test_an_interrupted_average_may_be_asked_for_again(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(interrupted, [(coordinator.address, n) for n in range(2)]))
    assert coordinator.wait() == 0
    assert (found[0][0], found[1][0]) == (2, 1)
    assert found[0][1] == found[1][1] == (0, 1)
    assert all((found[0][2][name] == found[1][2][name]).all() for name in found[0][2])


def never_close(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    member.average()
    queue.put(member.id)
    queue.close()
    queue.join_thread()
    joining._abandon(lambda: member._lifecycle)  # as at the process's end


def test_all_have_averaged_and_none_has_closed_is_a_finished_run(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    assert sorted(collect(never_close, [(coordinator.address, n) for n in range(2)])) == [0, 1]
    assert coordinator.wait() == 0
    assert coordinator.summary["averaged_over"] == [0, 1]


# What is sent


def frozen(address, number, queue):
    torch.manual_seed(0)
    base = nn.Linear(500, 500)
    base.requires_grad_(requires_grad=False)
    model, optimizer, member = joined(address, number, nn.Sequential(base, nn.Linear(500, 3)))
    torch.manual_seed(member.id)
    if member.id == 2:
        base.bias.data.add_(1)  # a difference that arises is averaged
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 500)).square().mean().backward()
        optimizer.step()
    state = member.average()
    alone = member.average(trainable_only=True)
    by_kind = {}
    for link, count in member.ledger.counts.items():
        by_kind[link.kind.name] = by_kind.get(link.kind.name, 0) + count.payload
    member.close()
    biases = (state["0.bias"] - base.bias).mean().item()
    queue.put((member.id, (by_kind, sorted(alone), biases, state["0.weight"].shape)))


def test_what_is_frozen_or_equal_is_not_sent(runs):
    coordinator = runs.coordinator("--n=3", "--p=0.2")
    found = dict(collect(frozen, [(coordinator.address, n) for n in range(3)]))
    assert coordinator.wait() == 0
    trainable, differing = 503 * 3 * 4, 500 * 4
    for member, (sent, alone, bias, shape) in found.items():
        assert sent.get("STATE", 0) < 1000  # digests
        assert sent["AVERAGE"] < 4 / 3 * (trainable + differing) + 1000
        assert alone == ["1.bias", "1.weight"]
        assert bias == pytest.approx(-2 / 3 if member == 2 else 1 / 3, abs=1e-6)
        assert shape == (500, 500)


# Newcomers, and optimizers of any kind


def factored(address, number, gate, queue):
    model = small(number)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    if number == 2:
        gate.wait(30)
    with washp2p.join(address, model, optimizer) as member:
        came = member.round
        while member.round < 1500:
            step(model, optimizer)
            time.sleep(0.002)
            if member.round > 20:
                gate.set()
        member.average()
        queue.put((number, (came, len(member.members))))


def test_a_newcomer_takes_over_factored_state(runs):
    coordinator = runs.coordinator("--n=3", "--min-n=2", "--p=0.1", "--patience=1")
    gate = FORKSERVER.Event()
    found = dict(collect(factored, [(coordinator.address, n, gate) for n in range(3)]))
    assert coordinator.wait() == 0
    assert found[2][0] > 0
    assert [over for _, over in found.values()] == [3, 3, 3]


class Unkept(torch.optim.SGD):
    """Its state cannot be written to a file."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["odd"] = object()


def unkept(address, number, gate, queue):
    model = small(number)
    optimizer = Unkept(model.parameters(), lr=0.01)
    if number == 2:
        gate.wait(30)
        with pytest.raises(JoinRefusedError) as refused:
            washp2p.join(address, model, optimizer)
        queue.put((2, str(refused.value)))
        return
    with washp2p.join(address, model, optimizer) as member:
        step(model, optimizer)
        gate.set()
        while member.round < 600:
            step(model, optimizer)
            time.sleep(0.002)
        queue.put((number, member.members))


def test_where_state_cannot_be_kept_nobody_comes_late_and_it_is_said(runs):
    coordinator = runs.coordinator("--n=3", "--min-n=2", "--p=0.1", "--patience=1")
    gate = FORKSERVER.Event()
    found = dict(collect(unkept, [(coordinator.address, n, gate) for n in range(3)]))
    assert coordinator.wait() == 0
    assert "nobody can join late: the optimizer's state cannot be given to others" in found[2]
    assert "no snapshots" in {notice["topic"] for notice in coordinator.summary["notices"]}


# One model, N times


def same_seed(address, number, how, queue):
    connection = washp2p.connect(address, seed=how == "seeded")
    if how != "seeded":
        torch.manual_seed(42)
    model = small(0) if how == "fixed" else nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3))
    if how == "fixed":
        torch.manual_seed(42)
    _, optimizer, member = joined(connection, number, model)
    for _ in range(60):
        step(model, optimizer)
    state = plain(member.average())
    own = model.state_dict()
    member.close()
    queue.put((member.id, all((state[n] == v.numpy()).all() for n, v in own.items())))


@pytest.mark.parametrize(("how", "told"), [("fixed", True), ("seeded", False)])
def test_members_that_are_one_model_are_told_so(runs, how, told):
    coordinator = runs.coordinator("--n=3", "--p=0.2", "--max-delay=0")
    found = dict(collect(same_seed, [(coordinator.address, n, how) for n in range(3)]))
    assert coordinator.wait() == 0
    assert list(found.values()) == [told] * 3  # identical, or not
    topics = {notice["topic"] for notice in coordinator.summary["notices"]}
    assert ("one model" in topics) is told
    if told:
        assert "connect(address, seed=True)" in coordinator.text
        assert "seed=True" in coordinator.text.partition("rounds/s")[0]


# Busy, dropped, failed cells


def validate(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    if member.id == 0:
        with member.busy(30):
            time.sleep(5)  # twelve patiences are 3.6 s
    for _ in range(STEPS):
        step(model, optimizer)
    member.average()
    members = member.members
    member.close()
    queue.put((member.id, members))


def test_busy_is_not_stuck(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--patience=0.3")
    found = dict(collect(validate, [(coordinator.address, n) for n in range(2)]))
    assert coordinator.wait() == 0
    assert found == {0: (0, 1), 1: (0, 1)}


def dropped(address, number, queue):
    model, optimizer, member = joined(address, number)
    told = []
    try:
        for count in range(400):
            step(model, optimizer)
            if member.id == 0 and count == 50:
                time.sleep(6)
    except DroppedError as error:
        told.append(str(error))
        for method in (member.average, member.models, member.leads, member.result, member.report):
            with pytest.raises(DroppedError) as again:
                method(
                    **(
                        {"members": [], "ensemble": 1, "averaged": 1, "greedy_soup": 1}
                        if method == member.result
                        else {}
                    )
                )
            told.append(str(again.value))
        member.close()
        member.leave()
        step(model, optimizer)
    else:
        member.average()
        member.close()
    queue.put((member.id, told))


def test_after_a_dropped_error_every_method_says_so_and_patience_is_named(runs):
    coordinator = runs.coordinator("--n=3", "--p=0.2", "--patience=0.3")
    found = dict(collect(dropped, [(coordinator.address, n) for n in range(3)]))
    assert coordinator.wait() == 0
    assert len(set(found[0])) == 1
    assert len(found[0]) == 6
    assert "twelve times --patience" in found[0][0]
    assert found[1] == found[2] == []


def failing_cell(address, number, queue):
    def cell(fails):
        model, optimizer, member = joined(address, number)
        for count in range(150):
            step(model, optimizer)
            time.sleep(0.01)
            if fails and count == 20:
                raise MemoryError("as if")
        member.average()
        member.close()
        return member.id, member.members

    found = None
    for attempt in range(2):
        with contextlib.suppress(MemoryError):
            found = cell(fails=number == 1 and attempt == 0)
            break
    queue.put(found)


def test_a_cell_that_failed_may_be_run_again(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--patience=1")
    found = dict(collect(failing_cell, [(coordinator.address, n) for n in range(2)]))
    assert coordinator.wait() == 0
    assert 2 in found
    assert "left: it has left by itself" in coordinator.text


# Buffers


def spectral(address, number, queue):
    torch.set_num_threads(1)
    torch.manual_seed(number)
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)
    )
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
    model.register_buffer("codes", torch.zeros(4))
    _, optimizer, member = joined(address, number, model)
    for _ in range(60):
        step(model, optimizer)
        model.codes.add_(torch.randn(4))
    state = member.average()
    member.close()
    model.load_state_dict(state)
    model.eval()
    model(torch.randn(2, 6))
    norm = torch.linalg.matrix_norm(model[0].weight.detach(), 2).item()
    queue.put((member.id, (norm, torch.equal(state["mask"], model.mask))))


def test_buffers_that_a_mean_would_break(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(spectral, [(coordinator.address, n) for n in range(2)]))
    assert coordinator.wait() == 0
    for norm, same in found.values():
        assert norm == pytest.approx(1, abs=1e-5)
        assert same
    (notice,) = [n for n in coordinator.summary["notices"] if n["topic"] == "buffers"]
    assert "1 buffers differed among members" in notice["text"]
    assert "codes" in notice["text"]


# The disk


class Disk:
    """Full at first."""

    def __init__(self, model):
        self.model = model
        self.tries = 0
        self.kept = None

    def write(self):
        self.tries += 1
        if self.tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.kept = {name: value.clone() for name, value in self.model.items()}


def full_disk(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    state = member.average()
    disk = Disk(state)
    if member.id == 0:
        member.persist(disk.write)
    else:
        assert set(member.models()) == {0, 1}  # which the other serves meanwhile
    member.close()
    queue.put((member.id, (disk.tries, disk.kept is not None and disk.kept.keys() == state.keys())))


def test_a_full_disk_at_the_end_loses_nothing(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--patience=0.3")
    found = dict(collect(full_disk, [(coordinator.address, n) for n in range(2)]))
    assert coordinator.wait() == 0
    assert found[0] == (3, True)
    (notice,) = coordinator.summary["notices"]
    assert "No space left" in notice["text"]


def plain_sgd(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    member.close()
    queue.put((number, None))


def test_wash_opt_without_state_says_that_it_is_wash(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--method=wash-opt")
    collect(plain_sgd, [(coordinator.address, number) for number in range(2)])
    assert coordinator.wait() == 0
    assert {notice["topic"] for notice in coordinator.summary["notices"]} == {"wash-opt"}
    assert "shuffles parameters alone here, as wash does" in coordinator.text


def follow_by_itself(address, meeting, rank, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    member = washp2p.attach(inner, optimizer, address)  # what a trainer's callback is given
    torch.manual_seed(rank)
    for _ in range(2):
        for _ in range(STEPS):
            step(model, optimizer)
        averaged = plain(member.average())
    own = {name: value.numpy().copy() for name, value in inner.state_dict().items()}
    found = (type(member).__name__, member.id, member.members, member.round, averaged, own)
    member.close()
    queue.put((rank, found))


def test_ranks_of_one_group_are_one_member_whatever_model_they_are_given(runs, tmp_path):
    coordinator = runs.coordinator("--n=2", "--min-n=1", "--p=0.2", "--patience=0.3")
    arguments = [(coordinator.address, tmp_path / "group", rank) for rank in range(2)]
    found = dict(collect(follow_by_itself, arguments))
    assert coordinator.wait() == 0
    assert [found[rank][0] for rank in range(2)] == ["Member", "Replica"]
    assert found[0][1:4] == found[1][1:4] == (0, (0,), 2 * STEPS)
    for one, other in zip(found[0][4:], found[1][4:], strict=True):
        assert all((one[name] == other[name]).all() for name in one)


def shard_later(address, number, queue):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model, optimizer, member = joined(address, number)
    step(model, optimizer)
    fully_shard(model)
    with pytest.raises(UsageError) as refused:
        optimizer.step()
    member.leave()
    queue.put((number, str(refused.value)))


def test_a_model_that_is_sharded_after_joining_is_noticed(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(shard_later, [(coordinator.address, number) for number in range(2)]))
    assert coordinator.wait() == 1
    for text in found.values():
        assert "0.weight of the model is another object, of DTensor" in text


def diverge(address, number, queue):
    model, optimizer, member = joined(address, number)
    count, lives = 0, 1
    sick = member.id in {1, 2}
    while member.round < 600:
        count += 1
        if sick and count == 20:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(float("nan"))
        try:
            step(model, optimizer)
        except DroppedError:
            lives += 1
            member = washp2p.attach(model, optimizer, address)
        time.sleep(0.003)
    state = member.average()
    finite = all(bool(value.isfinite().all()) for value in state.values())
    found = (sick, lives, finite, len(member.members))
    member.close()
    queue.put((number, found))


def test_several_members_that_diverge_at_once_are_all_reset(runs):
    coordinator = runs.coordinator("--n=4", "--p=0.5", "--patience=0.5", "--on-divergence=reset")
    found = dict(collect(diverge, [(coordinator.address, number) for number in range(4)]))
    assert coordinator.wait() == 0
    assert sorted(found.values()) == [(False, 1, True, 4)] * 2 + [(True, 2, True, 4)] * 2


def average_again(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(STEPS):
        step(model, optimizer)
    first = plain(member.average())  # what is late has been applied
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    second = plain(member.average(doubled))
    with torch.no_grad():
        model[0].bias.add_(1)
    third, again = plain(member.average()), plain(member.average())
    step(model, optimizer)
    with pytest.raises(UsageError, match="training has gone on since the last average"):
        member.models()
    member.close()
    queue.put((number, (first, second, third, again)))


def test_an_average_of_other_values_is_another_average(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    found = dict(collect(average_again, [(coordinator.address, number) for number in range(2)]))
    assert coordinator.wait() == 0
    assert coordinator.summary["averages"] == 4
    assert coordinator.summary["notices"] == []
    for first, second, third, again in found.values():
        for name, value in first.items():
            assert second[name] == pytest.approx(2 * value, abs=1e-6)
            assert third[name] == pytest.approx(value + (name == "0.bias"), abs=1e-6)
            assert (third[name] == again[name]).all()


def average_differently(address, number, queue):
    model, optimizer, member = joined(address, number)
    step(model, optimizer)
    told = ""
    try:
        member.average(model.state_dict() if member.id else None)
    except (UsageError, RunStoppedError) as error:
        told = str(error)  # or it averages alone, once the other has left
    member.leave()
    queue.put((number, told))


def test_members_that_average_different_things_are_told_so(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    arguments = [(coordinator.address, number) for number in range(2)]
    found = dict(collect(average_differently, arguments))
    assert any("of what was handed over on member 1, and of the model" in t for t in found.values())


def average_twice(address, number, queue):
    model, optimizer, member = joined(address, number)
    for _ in range(3):
        for _ in range(STEPS):
            step(model, optimizer)
        for _ in range(1 + 2 * (member.id == 0)):  # one of them looks again
            member.average()
    member.close()
    queue.put((number, None))


def test_who_asks_for_a_standing_average_again_is_no_less_in_the_rounds_after(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--max-delay=0", "--patience=0.5")
    collect(average_twice, [(coordinator.address, number) for number in range(2)])
    assert coordinator.wait() == 0
    assert coordinator.summary["averages"] == 3
    assert coordinator.summary["lost_values"] == 0
    for row in coordinator.summary["bytes"]:
        assert row["payload"] == row["expected_payload"] > 0.7 * row["theory"]
