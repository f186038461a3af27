"""Alignment undoes a permutation of hidden units exactly, and never changes what is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from washp2p.errors import UsageError
from washp2p.evaluation.alignment import align, permute, spaces_of
from workers.training.models import build_model

MODELS = [("cnn", (1, 12, 12)), ("vgg16", (3, 32, 32)), ("resnet18", (3, 16, 16))]


def made(name, shape):
    torch.manual_seed(3)
    model = build_model(name, shape, 10)
    for module in model.modules():  # batch norms that tell channels apart
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def shuffled(model):
    """Its state with all hidden units in some other order."""
    state = model.state_dict()
    _, spaces = spaces_of(model)
    for space in spaces:
        order = torch.randperm(state[space.out[0]].shape[0])
        assert len(order) > 1
        state = permute(state, space, order)
    return state


@pytest.mark.parametrize(("name", "shape"), MODELS)
def test_it_undoes_a_permutation_exactly(name, shape):
    model = made(name, shape)
    before = model.state_dict()
    inputs = torch.randn(24, *shape)
    other = shuffled(model)
    assert any(not torch.equal(before[key], other[key]) for key in before)
    plain = build_model(name, shape, 10).eval()
    plain.load_state_dict(other, strict=True)
    with torch.no_grad():
        assert torch.allclose(plain(inputs), model(inputs), atol=1e-4)
    back = align(model, other, before, [inputs])
    for key, tensor in before.items():
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize(("name", "shape"), MODELS)
def test_aligning_two_different_networks_changes_neither(name, shape):
    model = made(name, shape)
    torch.manual_seed(9)
    other = build_model(name, shape, 10).eval()
    inputs = torch.randn(24, *shape)
    with torch.no_grad():
        before = other(inputs)
        aligned = align(model, other.state_dict(), model.state_dict(), [inputs])
        other.load_state_dict(aligned, strict=True)
        assert torch.allclose(other(inputs), before, atol=1e-4)


def test_units_of_a_residual_stream_are_permuted_together():
    model = made("resnet18", (3, 16, 16))
    _, spaces = spaces_of(model)
    stream = next(space for space in spaces if "conv1.weight" in space.out)
    assert {"layer1.0.conv2.weight", "layer1.1.conv2.weight", "bn1.running_mean"} <= set(stream.out)
    assert ("layer2.0.conv1.weight", 1) in stream.into
    assert not any("fc" in name for space in spaces for name in space.out)


def test_what_is_not_understood_is_named():
    with pytest.raises(UsageError, match="grouped convolution"):
        spaces_of(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)))
    with pytest.raises(UsageError, match=r"MultiheadAttention|traced"):
        spaces_of(nn.TransformerEncoderLayer(8, 2))
