"""`washp2p.join` in a training loop of one's own: the same rounds, and a collective average."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import washp2p
from tests.integration.conftest import FORKSERVER
from washp2p.errors import JoinRefusedError, RunStoppedError, UnreachableError
from washp2p.reference import Reference, plain_average
from washp2p.rounds import round_seed, run_key

STEPS = 30
SEED = 11


def build(member):
    torch.manual_seed(member)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def step(model, optimizer, member, number):
    generator = torch.Generator().manual_seed(1000 * member + number)
    optimizer.zero_grad()
    model(torch.randn(8, 6, generator=generator)).square().mean().backward()
    optimizer.step()


def train(address, queue, average):
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
    coordinator = runs.coordinator(
        "--n=3", "--method=wash-opt", "--p=0.2", f"--seed={SEED}", "--max-delay=0"
    )
    queue = FORKSERVER.Queue()
    processes = [
        FORKSERVER.Process(target=train, args=(coordinator.address, queue, number < 2))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    averaged = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
        process.close()
    queue.close()
    queue.join_thread()
    assert coordinator.wait() == 0
    assert coordinator.summary["rounds"] == STEPS
    assert coordinator.summary["accuracy"]["averaged"] is None

    pairs = [build(member) for member in range(3)]
    for model, _ in pairs[1:]:
        model.load_state_dict(pairs[0][0].state_dict())
    models, optimizers = zip(*pairs, strict=True)
    reference = Reference(models, optimizers, method="wash-opt", schedule="decreasing", p=0.2)
    for number in range(STEPS):
        for member, (model, optimizer) in enumerate(pairs):
            step(model, optimizer, member, number)
        reference.shuffle(round_seed(run_key(SEED), number + 1))
    expected = plain_average([model.state_dict() for model in models])
    finals = {str(member): model.state_dict() for member, model in enumerate(models)}
    given = [states for states in averaged.values() if states is not None]
    assert len(given) == 2  # the third only did its part when it left its block
    for states in given:
        for which, state in ({"averaged": expected} | finals).items():
            assert list(states[which]) == list(state)
            for name, value in state.items():
                found = torch.from_numpy(states[which][name]).view(value.shape)
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
    queue = FORKSERVER.Queue()
    processes = [
        FORKSERVER.Process(target=train_unequally, args=(coordinator.address, queue))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    averaged = dict(queue.get(timeout=60) for _ in processes)
    assert coordinator.wait(30) == 0, coordinator.text
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
        process.close()
    queue.close()
    queue.join_thread()
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
