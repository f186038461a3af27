"""Cosine similarity of features, by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from washp2p.evaluation import average_state
from washp2p.evaluation.similarity import hidden_layers, similarities
from workers.training.models import build_model


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_it_is_the_mean_cosine_over_images_and_pairs():
    models = [small() for _ in range(3)]
    states = [model.state_dict() for model in models]
    averaged = average_state(states)
    inputs = torch.randn(20, 4)
    soup = small()
    soup.load_state_dict(averaged)
    found = similarities(small(), states, averaged, inputs.split(7))

    def features(model, depth):
        return model[:depth](inputs).detach().double().numpy()

    def cosine(a, b):
        return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()

    for one, name, depth in zip(found, ("0", "2"), (1, 3), strict=True):
        own = [features(model, depth) for model in models]
        pairs = [cosine(own[a], own[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert one.layer == name
        assert one.between == pytest.approx(100 * np.mean(pairs), abs=1e-4)
        expected = 100 * np.mean([cosine(each, features(soup, depth)) for each in own])
        assert one.averaged == pytest.approx(expected, abs=1e-4)


def test_identical_models_are_alike():
    state = small().state_dict()
    for one in similarities(small(), [state] * 2, state, [torch.randn(8, 4)]):
        assert (one.between, one.averaged) == pytest.approx((100, 100))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn", ["0", "3", "7", "9"]),
        ("resnet18", ["conv1", *(f"layer{k}.{b}" for k in range(1, 5) for b in (0, 1))]),
        ("vgg16", [f"0.{k}" for k in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]),
    ],
)
def test_hidden_layers_of_the_families(name, layers):
    assert list(hidden_layers(build_model(name, (3, 32, 32), 10))) == layers
