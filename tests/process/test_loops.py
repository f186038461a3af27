"""Anyone's training loop: what people do in theirs, each against Algorithm 1 done the plain way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import washp2p
from tests.support.processes import FORKSERVER, collect
from tests.support.sources import ROOT
from washp2p.driver import replicas
from washp2p.errors import DroppedError, RunStoppedError, UsageError
from washp2p.protocol.roster import round_seed, run_key
from workers.simulation.reference import Reference, plain_average

N, STEPS, SEED, P = 2, 12, 4, 0.4


class Loop:
    """A plain loop; kinds of loops differ in what they override."""

    def __init__(self, member):
        torch.manual_seed(member)
        self.member = member
        self.model = self.module()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.scaler = None
        self.prepare()

    def module(self):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3))

    def prepare(self):
        pass

    def join(self, run):
        return washp2p.join(run, self.model, self.optimizer, scaler=self.scaler)

    def final(self):
        """What is averaged in the model's place."""

    def loss(self, number):
        generator = torch.Generator().manual_seed(1000 * self.member + number)
        inputs = torch.randn(8, 6, generator=generator)
        return self.model(inputs.to(next(self.model.parameters()).dtype)).square().mean()

    def step(self, number):
        self.optimizer.zero_grad()
        self.loss(number).backward()
        self.optimizer.step()


class Accumulation(Loop):
    def step(self, number):
        self.optimizer.zero_grad()
        for part in range(3):
            (self.loss(3 * number + part) / 3).backward()
        self.optimizer.step()


class Scaled(Loop):
    """Automatic mixed precision: some steps are skipped, and not the same ones by all."""

    def prepare(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        self.skipped = 0

    def step(self, number):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss(number)
        if number % 5 == self.member:
            loss = loss * float("inf")
            self.skipped += 1
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Compiled(Loop):
    """Only the first member's is compiled: it must fit those that are not."""

    def prepare(self):
        self.plain = self.model
        if self.member == 0:
            self.model = torch.compile(self.model, backend="eager")


class Groups(Loop):
    def prepare(self):
        first, *rest = self.model.parameters()
        self.optimizer = torch.optim.AdamW(
            [{"params": [first], "lr": 0.1, "weight_decay": 0.0}, {"params": rest}], lr=0.01
        )


class Frozen(Loop):
    def prepare(self):
        self.model[2].requires_grad_(False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.hidden = nn.Linear(5, 5)
        self.out = nn.Linear(5, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.relu(self.hidden(self.embedding(tokens))))


class TiedWeights(Loop):
    def module(self):
        return Tied()

    def loss(self, number):
        generator = torch.Generator().manual_seed(1000 * self.member + number)
        tokens = torch.randint(11, (8,), generator=generator)
        return nn.functional.cross_entropy(self.model(tokens), tokens.roll(1))


class Scheduled(Loop):
    def prepare(self):
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=0.2, total_steps=STEPS
        )

    def step(self, number):
        super().step(number)
        self.scheduler.step()


class Half(Loop):
    def module(self):
        return super().module().to(torch.float16)


class BFloat(Loop):
    def module(self):
        return super().module().to(torch.bfloat16)


class Attached(Loop):
    def join(self, run):
        return washp2p.attach(self.model, self.optimizer, run)


class Moving(Loop):
    """A moving average of the weights is what is averaged in the end."""

    def prepare(self):
        self.moving = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def step(self, number):
        if number:
            self.moving.update_parameters(self.model)
        super().step(number)

    def final(self):
        self.moving.update_parameters(self.model)
        return self.moving.module.state_dict()


class Parts(Loop):
    """Two parts of a batch, one after the other; Replicated has a process for each."""

    def prepare(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def part(self, number, part):
        return self.loss(2 * number + part)

    def step(self, number):
        self.optimizer.zero_grad()
        for part in range(2):
            (self.part(number, part) / 2).backward()
        self.optimizer.step()


class Replicated(Parts):
    """One of two processes that train one member."""

    def __init__(self, member, rank):
        super().__init__(member)
        self.rank = rank

    def prepare(self):
        self.model = nn.parallel.DistributedDataParallel(self.model)
        super().prepare()

    def step(self, number):
        self.optimizer.zero_grad()
        self.part(number, self.rank).backward()
        self.optimizer.step()


LOOPS = [
    Loop, Accumulation, Scaled, Compiled, Groups, Frozen, TiedWeights, Scheduled, Half, BFloat,
    Attached, Moving,
]  # fmt: skip


def train(kind, address, queue):
    torch.set_num_threads(1)
    connection = washp2p.connect(address)
    loop = kind(connection.member)
    member = loop.join(connection)
    for number in range(STEPS):
        loop.step(number)
    assert member.round == STEPS
    averaged = member.average(loop.final)
    loop.model.load_state_dict(averaged)
    states = {str(peer): state for peer, state in {**member.models(), -1: averaged}.items()}
    arrays = {
        which: {k.removeprefix("_orig_mod."): v.double().numpy() for k, v in state.items()}
        for which, state in states.items()
    }
    member.close()
    member.close()
    queue.put((member.id, arrays))


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_equals_the_reference(runs, kind):
    coordinator = runs.coordinator(f"--n={N}", f"--p={P}", f"--seed={SEED}", "--max-delay=0")
    found = dict(collect(train, [(kind, coordinator.address)] * N))
    assert coordinator.wait(30) == 0, coordinator.text
    torch.set_num_threads(1)
    expected, loops = by_the_reference(kind)
    for states in found.values():
        assert states.keys() == expected.keys()
        for which, state in expected.items():
            assert list(states[which]) == list(state)
            for name, value in state.items():
                assert (states[which][name] == value.double().numpy()).all(), (which, name)
    if kind is Scaled:
        assert [loop.skipped for loop in loops] == [3, 3]
    rows = coordinator.summary["bytes"]
    assert [row["payload"] for row in rows] == [row["expected_payload"] for row in rows]
    assert all(row["payload"] for row in rows)


def by_the_reference(kind, method="wash"):
    """All members' state dicts after STEPS steps, the averaged one as "-1", and the loops."""
    loops = [kind(member) for member in range(N)]
    models = [getattr(loop, "plain", loop.model) for loop in loops]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    reference = Reference(
        models, [loop.optimizer for loop in loops], method=method, schedule="decreasing", p=P
    )
    for number in range(STEPS):
        for loop in loops:
            loop.step(number)
        reference.shuffle(round_seed(run_key(SEED), number + 1))
    pairs = zip(loops, models, strict=True)
    states = [loop.final() or model.state_dict() for loop, model in pairs]
    named = {str(member): state for member, state in enumerate(states)}
    return {**named, "-1": plain_average(states)}, loops


def in_a_group(meeting, rank, seconds=60):
    """Be one of two processes that train one member."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(meeting, 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=seconds),
    )


def train_replicated(address, meeting, number, rank, queue):
    """One process of member `number`, which is one of two."""
    in_a_group(f"{meeting}-{number}", rank)
    loop = Replicated(number, rank)
    if rank == 0:
        connection = washp2p.connect(address, rank=number)
        member = washp2p.join(connection, loop.model, loop.optimizer)
    else:
        member = washp2p.follow(loop.model, loop.optimizer)
    assert member.config.method.p == P
    with member:
        while member.round < STEPS:
            loop.step(member.round)
        averaged = member.average() if rank == 0 else {}
    assert member.closed
    moments = [loop.optimizer.state[p] for p in loop.model.parameters()]
    vectors = {name: p.detach().numpy() for name, p in loop.model.module.named_parameters()}
    vectors |= {f"{k}.exp_avg": s["exp_avg"].numpy() for k, s in enumerate(moments)}
    queue.put((number, rank, vectors, {name: v.numpy() for name, v in averaged.items()}))
    distributed.destroy_process_group()


@pytest.mark.parametrize("max_delay", ["0", "3"])
def test_one_member_on_several_devices(runs, tmp_path, max_delay):
    """Rank 0 of each member's own group exchanges; all its ranks end with the same bits.

    In lockstep these are the reference's.
    """
    flags = (f"--n={N}", f"--p={P}", f"--seed={SEED}", "--method=wash-opt")
    coordinator = runs.coordinator(*flags, f"--max-delay={max_delay}")
    processes = [
        (coordinator.address, str(tmp_path / "meeting"), number, rank)
        for number in range(N)
        for rank in range(2)
    ]
    found = {
        (number, rank): (vectors, averaged)
        for number, rank, vectors, averaged in collect(train_replicated, processes)
    }
    assert coordinator.wait(30) == 0, coordinator.text
    for number in range(N):
        (first, _), (second, _) = found[number, 0], found[number, 1]
        for name, value in first.items():
            assert (second[name] == value).all(), (number, name)
    if max_delay != "0":
        return
    torch.set_num_threads(1)
    expected, loops = by_the_reference(Parts, "wash-opt")
    for number in range(N):
        vectors, averaged = found[number, 0]
        for name, value in expected[str(number)].items():
            assert (vectors[name] == value.numpy()).all(), (number, name)
        for k, parameter in enumerate(loops[number].model.parameters()):
            moment = loops[number].optimizer.state[parameter]["exp_avg"]
            assert (vectors[f"{k}.exp_avg"] == moment.numpy()).all(), (number, k)
        for name, value in expected["-1"].items():
            assert (averaged[f"module.{name}"] == value.numpy()).all()


def lose_the_run(address, meeting, rank, queue):
    in_a_group(meeting, rank)
    loop = Replicated(0, rank)
    with pytest.raises(UsageError, match="washp2p.join here" if rank == 0 else "washp2p.follow"):
        (washp2p.join if rank else washp2p.follow)(
            *([address] if rank else []), loop.model, loop.optimizer
        )
    if rank == 0:
        member = washp2p.join(address, loop.model, loop.optimizer, rounds=30)
    else:
        member = washp2p.follow(loop.model, loop.optimizer)
    why = ""
    while not why:
        try:
            loop.step(member.round)
        except (RunStoppedError, UsageError) as stopped:
            why = f"{type(stopped).__name__}: {stopped}"
        queue.put((rank, member.round, why))
    assert member.closed or rank == 0
    distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["interrupted", "a step too many"])
def test_replicas_stop_with_their_member(runs, tmp_path, how):
    coordinator = runs.coordinator("--n=2", "--min-n=1", "--p=0.2", "--patience=1")
    queue = FORKSERVER.Queue()
    processes = [
        FORKSERVER.Process(
            target=lose_the_run,
            args=(coordinator.address, str(tmp_path / "meeting"), rank, queue),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    ends = {}
    while len(ends) < 2:
        rank, number, why = queue.get(timeout=60)
        if how == "interrupted" and (rank, number) == (0, 10):
            os.kill(coordinator.process.pid, signal.SIGINT)
        if why:
            ends[rank] = number, why
    expected = "RunStoppedError" if how == "interrupted" else "UsageError: step 31"
    assert ends[0][1].startswith(expected), ends
    assert ends[1][1].startswith("RunStoppedError: the first process of this member"), ends
    assert ends[1][0] == ends[0][0], ends
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
        process.close()


def average_in_vain(address, meeting, rank, queue):
    in_a_group(meeting, rank)
    loop = Replicated(0, rank)
    if rank == 0:
        member = washp2p.join(address, loop.model, loop.optimizer)
    else:
        member = washp2p.follow(loop.model, loop.optimizer)
    loop.step(0)
    if rank == 0:
        next(loop.model.parameters()).data.fill_(float("nan"))
    try:
        with member:
            if rank == 0:
                member.average()
    except RunStoppedError as stopped:
        queue.put(str(stopped))
    distributed.destroy_process_group()


def test_replicas_hear_of_an_average_that_cannot_be(runs, tmp_path):
    coordinator = runs.coordinator("--n=2", "--min-n=1", "--p=0.2", "--patience=1")
    group = [(coordinator.address, str(tmp_path / "meeting"), rank) for rank in range(2)]
    found = sorted(collect(average_in_vain, group))
    assert "has diverged" in found[0]
    assert "the first process of this member" in found[1]


def wait_for_long(address, meeting, rank, queue):
    """A member whose group waits for no operation longer than a second."""
    in_a_group(meeting, rank, seconds=1)
    loop = Replicated(0, rank)
    if rank == 0:
        replicas.WAIT_SECONDS = 0.2
        member = washp2p.join(address, loop.model, loop.optimizer)
    else:
        queue.put("waits")
        share = replicas._Channel.share

        def told(channel, tensor):
            queue.put("told")
            return share(channel, tensor)

        replicas._Channel.share = told
        member = washp2p.follow(loop.model, loop.optimizer)
    loop.step(0)
    member.close()
    distributed.destroy_process_group()


def test_replicas_wait_as_long_as_their_member_does(runs, tmp_path):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    queue = FORKSERVER.Queue()
    group = [(coordinator.address, str(tmp_path / "meeting"), rank) for rank in range(2)]
    processes = [FORKSERVER.Process(target=wait_for_long, args=(*each, queue)) for each in group]
    for process in processes:
        process.start()
    for _ in range(12):  # more than two seconds of waiting
        queue.get(timeout=60)
    alone = FORKSERVER.Process(target=take_one_step, args=(coordinator.address,))
    alone.start()
    for process in (*processes, alone):
        process.join(30)
        assert process.exitcode == 0
        process.close()
    assert coordinator.wait(30) == 0, coordinator.text


def take_one_step(address):
    loop = Parts(1)
    with washp2p.join(address, loop.model, loop.optimizer):
        loop.step(0)


def abandon(address, how):
    connection = washp2p.connect(address)
    loop = Loop(connection.member)
    member = washp2p.attach(loop.model, loop.optimizer, connection)
    while member.members == (0, 1):
        loop.step(member.round)
        if member.id == 1 and member.round == 5:
            if how == "raises":
                raise RuntimeError("the loss is a teapot")
            sys.exit(0)
    member.close()


@pytest.mark.parametrize(
    ("how", "why"),
    [("raises", "the loss is a teapot"), ("ends", "its process has ended without Member.close()")],
)
def test_a_process_that_ends_before_its_loop_says_why(runs, how, why):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    code = f"from {__name__} import abandon; abandon({coordinator.address!r}, {how!r})"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT))
            for _ in range(2)
        ]
        stack.callback(lambda: [process.kill() for process in processes])
        assert coordinator.wait(60) == 0, coordinator.text
        assert f"left: {why}" in coordinator.text
        assert sorted(process.wait(30) for process in processes) == [0, int(how == "raises")]


def pause(address, dropped):
    """Step on; member 1 stops itself once, is dropped, and attaches anew."""
    connection = washp2p.connect(address)
    loop = Loop(connection.member)
    loop.scaler = torch.amp.GradScaler("cpu")
    member = washp2p.attach(loop.model, loop.optimizer, connection, scaler=loop.scaler)
    left = 300  # rounds, once both are there again
    while left:
        left -= member.members == (0, 2)
        try:
            if member.id == 1 and member.round == 5:
                os.kill(os.getpid(), signal.SIGSTOP)
            loop.step(member.round)
        except DroppedError:
            dropped.set()
            connection = washp2p.connect(address)
            member = washp2p.attach(loop.model, loop.optimizer, connection, scaler=loop.scaler)
    member.average()
    member.close()


def test_who_was_dropped_attaches_again(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2", "--patience=1")
    dropped = FORKSERVER.Event()
    processes = [
        FORKSERVER.Process(target=pause, args=(coordinator.address, dropped)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    line = coordinator.until("member 1 (")
    pid = int(re.search(r"process (\d+)", line)[1])
    coordinator.until("going on with 1 of 2 members")
    os.kill(pid, signal.SIGCONT)
    assert dropped.wait(30)
    assert coordinator.wait(60) == 0, coordinator.text
    assert coordinator.summary["averaged_over"] == [0, 2]
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
        process.close()
