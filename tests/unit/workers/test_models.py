"""The architectures: sizes known from the literature, shapes, refusals."""

from __future__ import annotations

import pytest
import torch

from washp2p.errors import UsageError
from workers.training.models import build_model


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("cnn", (1, 28, 28), 10, 56_394),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
        ("vgg16", (3, 32, 32), 10, 14_728_266),
        ("resnet50", (3, 224, 224), 1000, 25_557_032),
        ("resnet18", (1, 8, 8), 10, 11_172_810),
    ],
)
def test_parameter_counts(name, shape, classes, parameters):
    model = build_model(name, shape, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cnn", (1, 8, 8)), ("cnn", (3, 32, 32)), ("resnet18", (3, 32, 32)), ("vgg16", (3, 32, 32))],
)
def test_outputs_have_one_value_a_class(name, shape):
    model = build_model(name, shape, 7).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vgg16", (1, 8, 8), "needs images of at least 32x32, these are 8x8"),
        ("resnet50", (1, 28, 28), "takes colour images"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, shape, words):
    with pytest.raises(UsageError, match=words):
        build_model(name, shape, 10)
