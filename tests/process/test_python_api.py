"""`washp2p.join` in a training loop of one's own: the same rounds, and a collective average."""

from __future__ import annotations

import signal
import sys
import threading

import pytest
import torch
from torch import nn

import washp2p
from tests.support.processes import FORKSERVER, collect
from washp2p.errors import JoinRefusedError, RunStoppedError, UnreachableError
from washp2p.protocol.roster import round_seed, run_key
from workers.simulation.reference import Reference, plain_average

STEPS = 30
SEED = 11
LOCKSTEP = ("--n=3", "--method=wash-opt", "--p=0.2", f"--seed={SEED}", "--max-delay=0")


def build(member):
    torch.manual_seed(member)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def step(model, optimizer, member, number):
    generator = torch.Generator().manual_seed(1000 * member + number)
    optimizer.zero_grad()
    model(torch.randn(8, 6, generator=generator)).square().mean().backward()
    optimizer.step()


def train(address, average, queue):
    torch.set_num_threads(1)
    connection = washp2p.connect(address)
    model, optimizer = build(connection.member)
    with washp2p.join(connection, model, optimizer) as member:
        for number in range(STEPS):
            step(model, optimizer, member.id, number)
        found = None
        if average:
            found = {"averaged": member.average()}
            model.load_state_dict(found["averaged"])  # what peers are served must not change by it
            found |= {str(peer): member.model_of(peer) for peer in member.members}
            found = {w: {k: v.numpy() for k, v in state.items()} for w, state in found.items()}
        queue.put((member.id, found))


def test_a_loop_of_ones_own_equals_the_reference(runs):
    coordinator = runs.coordinator(*LOCKSTEP)
    averaged = dict(collect(train, [(coordinator.address, number < 2) for number in range(3)]))
    assert coordinator.wait() == 0
    assert coordinator.summary["rounds"] == STEPS
    assert coordinator.summary["accuracy"]["averaged"] is None

    expected = by_the_reference()
    given = [states for states in averaged.values() if states is not None]
    assert len(given) == 2  # the third only did its part when it left its block
    for states in given:
        for which, state in expected.items():
            assert_equal(states[which], state, which)


class Log:
    """What a loop has besides model and optimizer."""

    def __init__(self):
        self.numbers = []

    def state_dict(self):
        return {"last": self.numbers[-1], "seen": [torch.tensor(self.numbers)]}

    def load_state_dict(self, state):
        self.numbers = state["seen"][0].tolist()
        assert self.numbers[-1] == state["last"]


def train_on(address, queue, folder, last):
    """As `train`, from wherever the member is; before step `last` it waits to be killed."""
    torch.set_num_threads(1)
    connection = washp2p.connect(address, run_dir=folder)
    model, optimizer = build(connection.member)
    log = Log()
    with washp2p.join(connection, model, optimizer, state=log) as member:
        for number in range(member.round, STEPS):
            if number == last:
                threading.Event().wait()
            log.numbers.append(number)
            step(model, optimizer, member.id, number)
        state = {name: value.numpy() for name, value in member.average().items()}
        queue.put((log.numbers, state))


def test_a_loop_of_ones_own_goes_on_from_checkpoints(runs):
    folder = runs.folder / "run"
    queue = FORKSERVER.Queue()
    for last, code in ((25, -signal.SIGKILL), (-1, 0)):
        flags = ("--checkpoint-minutes=1e-6",) if last > 0 else ()
        coordinator = runs.coordinator(*LOCKSTEP, *flags, resume=last < 0)
        processes = [
            FORKSERVER.Process(target=train_on, args=(coordinator.address, queue, folder, last))
            for _ in range(3)
        ]
        for process in processes:
            process.start()
        if last > 0:
            coordinator.until("all members have a checkpoint of round")
            coordinator.kill()  # first, so that it drops nobody
            for process in processes:
                process.kill()
        else:
            coordinator.until("3 members go on from their checkpoints of round")
            given = [queue.get(timeout=60) for _ in processes]
            assert coordinator.wait() == 0, coordinator.text
        for process in processes:
            process.join(30)
            assert process.exitcode == code
            process.close()
        coordinator.kill()
    queue.close()
    queue.join_thread()
    expected = by_the_reference()["averaged"]
    for numbers, state in given:
        assert numbers == list(range(STEPS))
        assert_equal(state, expected, "averaged")


def by_the_reference():
    """The averaged model and all members' after STEPS steps."""
    pairs = [build(member) for member in range(3)]
    for model, _ in pairs[1:]:
        model.load_state_dict(pairs[0][0].state_dict())
    models, optimizers = zip(*pairs, strict=True)
    reference = Reference(models, optimizers, method="wash-opt", schedule="decreasing", p=0.2)
    for number in range(STEPS):
        for member, (model, optimizer) in enumerate(pairs):
            step(model, optimizer, member, number)
        reference.shuffle(round_seed(run_key(SEED), number + 1))
    states = [model.state_dict() for model in models]
    finals = {str(member): state for member, state in enumerate(states)}
    return {"averaged": plain_average(states), **finals}


def assert_equal(arrays, state, which):
    assert list(arrays) == list(state)
    for name, value in state.items():
        found = torch.from_numpy(arrays[name]).view(value.shape)
        assert torch.equal(found, value), (which, name)


def fail(address):
    connection = washp2p.connect(address)
    model, optimizer = build(connection.member)
    with washp2p.join(connection, model, optimizer) as member:
        while member.members == (0, 1):
            step(model, optimizer, member.id, member.round)
            if member.id == 1 and member.round == 5:
                sys.exit("the loss is a teapot")


def test_an_error_in_one_loop_leaves_the_others_to_go_on_and_says_why(runs):
    coordinator = runs.coordinator("--n=2", "--p=0.2")
    processes = [FORKSERVER.Process(target=fail, args=(coordinator.address,)) for _ in range(2)]
    for process in processes:
        process.start()
    assert coordinator.wait(30) == 0, coordinator.text
    assert "left: the loss is a teapot" in coordinator.text
    assert coordinator.summary["averaged_over"] == [0]
    (departed,) = coordinator.summary["departed"]
    assert (departed["member"], departed["reason"]) == (1, "left: the loss is a teapot")
    codes = []
    for process in processes:
        process.join(10)
        codes.append(process.exitcode)
        process.close()
    assert sorted(codes) == [0, 1]


def train_unequally(address, queue):
    connection = washp2p.connect(address)
    model, optimizer = build(connection.member)
    with washp2p.join(connection, model, optimizer) as member:
        for number in range(STEPS + 5 * member.id):
            step(model, optimizer, member.id, number)
        state = member.average()
        queue.put((member.id, {k: v.numpy() for k, v in state.items()}))


@pytest.mark.parametrize("max_delay", ["0", "auto", "none"])
def test_a_member_that_has_finished_is_absent_from_later_rounds_and_averaged(runs, max_delay):
    coordinator = runs.coordinator("--n=2", "--p=1", f"--max-delay={max_delay}")
    averaged = dict(collect(train_unequally, [(coordinator.address,)] * 2))
    assert coordinator.wait(30) == 0, coordinator.text
    for name, value in averaged[0].items():
        assert (averaged[1][name] == value).all()
    assert [row["steps"] for row in coordinator.summary["bytes"]] == [STEPS, STEPS + 5]
    assert coordinator.summary["lost_values"] == 0


def other_model(address, queue, number):
    model = nn.Linear(4, 3 + number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        washp2p.join(address, model, optimizer)
    except (JoinRefusedError, RunStoppedError) as error:
        queue.put((type(error).__name__, str(error)))


def test_a_model_that_differs_is_refused_naming_both_sides(runs):
    coordinator = runs.coordinator("--n=2")
    queue = FORKSERVER.Queue()
    processes = [
        FORKSERVER.Process(target=other_model, args=(coordinator.address, queue, number))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    kind, text = queue.get(timeout=30)
    assert kind == "JoinRefusedError"
    assert "does not fit that of member" in text
    assert "weight[3, 4]" in text
    assert "weight[4, 4]" in text
    coordinator.process.terminate()
    kind, text = queue.get(timeout=30)
    assert (kind, text) == ("RunStoppedError", "the coordinator was interrupted")
    for process in processes:
        process.join(10)
        process.close()
    queue.close()
    queue.join_thread()


def test_nobody_there():
    with pytest.raises(UnreachableError, match=r"within 0\.2 s"):
        washp2p.connect("tcp://127.0.0.1:9", wait=0.2)
