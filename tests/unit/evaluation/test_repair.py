"""REPAIR restores the moments it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from washp2p.evaluation import average_state
from washp2p.evaluation.repair import preactivations, repair, reset_batch_norm
from workers.training.models import build_model

SHAPE = (1, 12, 12)


def members(count, name="cnn", shape=SHAPE):
    torch.manual_seed(1)
    models = [build_model(name, shape, 10) for _ in range(count)]
    for model in models:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return models


def moments(model, inputs):
    """Mean and standard deviation of each preactivation's channels, by a few lines of NumPy."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: found.append(out.detach().double().numpy()))
        for layer in preactivations(model)
    ]
    model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    axes = [tuple(d for d in range(out.ndim) if d != 1) for out in found]
    return [(out.mean(a), out.std(a)) for out, a in zip(found, axes, strict=True)]


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_preactivations_have_their_members_mean_moments(weights):
    models = members(3)
    inputs = torch.randn(64, *SHAPE)
    states = [model.state_dict() for model in models]
    repaired = repair(models[0], states, average_state(states), [[inputs]] * 4, weights)
    model = members(1)[0]
    model.load_state_dict(repaired, strict=True)
    own = [moments(each, inputs) for each in models]
    shares = weights or [1 / 3] * 3
    collapsed = members(1)[0]
    collapsed.load_state_dict(average_state(states))
    for place, (mean, deviation) in enumerate(moments(model, inputs)):
        wanted = sum(w * each[place][0] for w, each in zip(shares, own, strict=True))
        assert mean == pytest.approx(wanted, abs=1e-4)
        wanted = sum(w * each[place][1] for w, each in zip(shares, own, strict=True))
        assert deviation == pytest.approx(wanted, rel=1e-3, abs=1e-4)
        assert moments(collapsed, inputs)[place][1].mean() < 0.9 * wanted.mean()


def test_several_batches_count_alike():
    """Moments are means over batches, and exact however many there are."""
    models = members(2)
    inputs = torch.randn(96, *SHAPE)
    thirds = list(inputs.split(32))
    states = [model.state_dict() for model in models]
    repaired = repair(models[0], states, average_state(states), [thirds] * 3)

    def over_batches(state):
        model = members(1)[0]
        model.load_state_dict(state)
        each = [moments(model, batch) for batch in thirds]
        return [
            (np.mean([m for m, _ in place], 0), np.sqrt(np.mean([d**2 for _, d in place], 0)))
            for place in zip(*each, strict=True)
        ]

    one, other = (over_batches(state) for state in states)
    for a, b, found in zip(one, other, over_batches(repaired), strict=True):
        for kind in (0, 1):
            assert found[kind] == pytest.approx((a[kind] + b[kind]) / 2, abs=2e-4)


def test_a_network_with_batch_norm_loads_into_the_plain_model_and_has_new_statistics():
    models = members(2, "vgg16", (3, 32, 32))
    states = [model.state_dict() for model in models]
    inputs = torch.randn(16, 3, 32, 32)
    repaired = repair(models[0], states, average_state(states), [[inputs]] * 3)
    plain = build_model("vgg16", (3, 32, 32), 10)
    plain.load_state_dict(repaired, strict=True)
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_the_soup_of_one_is_that_model():
    (model,) = members(1)
    inputs = torch.randn(32, *SHAPE).split(8)
    state = model.state_dict()
    repaired = repair(model, [state], state, [inputs] * 2)
    for name, tensor in state.items():
        assert torch.allclose(repaired[name], tensor, atol=1e-5), name


def test_statistics_of_batch_norms_are_those_of_the_inputs():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    inputs = torch.randn(40, 3) * 5 + 2
    model.train()
    reset_batch_norm(model, inputs.split(10))
    assert model[0].running_mean.tolist() == pytest.approx(inputs.mean(0).tolist(), abs=1e-5)
    assert model.training
    assert model[1].training
    assert model[0].momentum == 0.1
