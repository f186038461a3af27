"""Steps without rounds are noticed; training as it should be is not."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from washp2p.errors import UsageError
from washp2p.model import missed_steps as module
from washp2p.model.missed_steps import BESIDE, IN_A_ROW, TOPIC, MissedSteps


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.01)
    told, heard = [], threading.Event()

    def tell(topic, text):
        told.append((topic, text))
        heard.set()

    watch = MissedSteps(list(model.parameters()), optimizer, tell)
    optimizer.register_step_post_hook(lambda *_: watch.stepped())
    yield model, optimizer, watch, told, heard
    watch.close()


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 4)).square().mean().backward()
    optimizer.step()


def test_a_new_optimizer_with_the_same_parameters_is_certain(scene):
    model, optimizer, _, _, _ = scene
    for _ in range(5):
        step(model, optimizer)
    new = torch.optim.AdamW(model.parameters())
    for _ in range(IN_A_ROW - 1):
        step(model, new)
    with pytest.raises(UsageError, match=f"a AdamW has stepped {IN_A_ROW} times.*no round follow"):
        step(model, new)


def test_optimizers_that_take_turns_and_other_models_are_nothing(scene):
    model, optimizer, watch, told, _ = scene
    second = torch.optim.SGD(model.parameters(), lr=0.01)
    other = nn.Linear(4, 4)
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(10):
        step(model, second)  # a wrapper steps the inner one first
        step(model, optimizer)
        for _ in range(5):
            step(other, elsewhere)
    watch.check()
    assert told == []


def test_steps_of_other_parts_are_said(scene):
    model, optimizer, _, told, _ = scene
    step(model, optimizer)
    body = torch.optim.SGD(model[:3].parameters(), lr=0.01)
    for _ in range(BESIDE):
        step(model, body)
    ((topic, text),) = told
    assert topic == TOPIC
    assert f"parts of the model {BESIDE} times" in text


def update(model, how):
    model(torch.randn(4, 4)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            (parameter.data if how == "data" else parameter).sub_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize("how", ["in place", "data"])
def test_steps_of_ones_own_are_said_while_they_go_on(scene, how):
    model, optimizer, _, told, heard = scene
    step(model, optimizer)
    while not heard.wait(0.01):
        update(model, how)
    assert "has been training" in told[0][1]


def test_a_model_that_trained_without_any_round_has_no_average(scene):
    model, _, watch, _, _ = scene
    watch.check()
    update(model, "in place")
    update(model, "in place")
    with pytest.raises(UsageError, match=r"has changed 2 times and no round followed; .*join with"):
        watch.check()


def test_a_model_that_trained_on_is_said_before_its_average(scene):
    model, _, watch, told, _ = scene
    whole = torch.optim.SGD(model.parameters(), lr=0.01)
    watch._optimizer = whole
    whole.register_step_post_hook(lambda *_: watch.stepped())
    for _ in range(20):
        step(model, whole)
    for parameter in model.parameters():
        parameter.detach().clamp_(-2, 2)  # once after the last step is nothing
    watch.check()
    assert told == []
    for _ in range(20):
        update(model, "in place")
    watch.check()
    assert "since its last round" in told[0][1]


def test_a_compiled_step_calls_its_hooks(scene):
    model, optimizer, watch, told, _ = scene
    counted = []
    optimizer.register_step_post_hook(lambda *_: counted.append(1))
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 4)).square().mean().backward()
        compiled()
    assert len(counted) == 3
    watch.check()
    assert told == []
