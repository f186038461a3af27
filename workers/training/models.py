"""The architectures, by name: logistic regression, a small CNN, the papers' networks, timm's.

On images up to 64 pixels high, ResNet-18 takes its 32x32 form: the first convolution is 3x3 without
stride, and no pooling follows. VGG-16 has one linear layer after the last pooling. ResNet-50 is
torchvision's.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.vgg import cfgs, make_layers

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

TIMM = "timm"
Shape = tuple[int, int, int]
"""Channels, height, width of an input."""


def build_model(name: str, shape: Shape, classes: int) -> nn.Module:
    """A freshly initialised model for inputs of `shape`. Draws from torch's global generator.

    Raises UsageError if the images are too small for it, or timm has no such model.
    """
    if name.startswith(f"{TIMM}:"):
        return from_timm(name, shape, classes, pretrained=False)
    smallest = {"linear": 1, "cnn": 4, "vgg16": 32}.get(name, 8)
    if min(shape[1:]) < smallest:
        raise UsageError(
            f"--model {name} needs images of at least {smallest}x{smallest}, these are "
            f"{shape[1]}x{shape[2]}; choose --model cnn or larger images"
        )
    return _MODELS[name](shape, classes)


def last_layer(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the layer that turns features into classes.

    In timm's models these belong to the classifier, in others to the last registered module that
    owns parameters.
    """
    named = getattr(model, "pretrained_cfg", {}).get("classifier")
    if named:
        heads = [model.get_submodule(k) for k in ((named,) if isinstance(named, str) else named)]
        return [parameter for head in heads for parameter in head.parameters()]
    owners = [own for m in model.modules() if (own := list(m.parameters(recurse=False)))]
    return owners[-1]


def from_timm(name: str, shape: Shape, classes: int, *, pretrained: bool) -> nn.Module:
    """The model `name`, as in timm:NAME; with `pretrained`, with weights that timm downloads.

    Raises UsageError if timm is not installed, has no such model or cannot get its weights, or if
    the model takes images of another size.
    """
    try:
        import timm
    except ImportError:
        raise UsageError(
            f"--model {name} needs timm; pip install timm (or this project's extra `finetune`)"
        ) from None
    try:
        model: nn.Module = timm.create_model(
            name.removeprefix(f"{TIMM}:"),
            pretrained=pretrained,
            num_classes=classes,
            in_chans=shape[0],
        )
    except (RuntimeError, ValueError, TypeError, AssertionError, OSError) as error:
        first = (str(error) or repr(error)).splitlines()[0]
        raise UsageError(
            f"--model {name}: timm says {first!r:.200}; expected one of timm.list_models()"
            + (", with weights that can be downloaded" if pretrained else "")
        ) from None
    known: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's
    expected = tuple(known["input_size"][1:])
    if known.get("fixed_input_size") and shape[1:] != expected:
        raise UsageError(
            f"--model {name} takes images of {expected[0]}x{expected[1]}, these are "
            f"{shape[1]}x{shape[2]}; add --image-size {expected[0]}"
        )
    return model


def _linear(shape: Shape, classes: int) -> nn.Module:
    """Logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), classes))


def _cnn(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions and three linear layers: 56,394 parameters on 28x28 grey images."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


def _resnet18(shape: Shape, classes: int) -> nn.Module:
    model: nn.Module = resnet18(num_classes=classes)
    if shape[1] <= 64:
        model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _vgg16(shape: Shape, classes: int) -> nn.Module:
    features: nn.Sequential = make_layers(cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    pooled: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if shape[1] > 32 else []
    return nn.Sequential(features, *pooled, nn.Flatten(), nn.Linear(512, classes))


def _resnet50(shape: Shape, classes: int) -> nn.Module:
    model: nn.Module = resnet50(num_classes=classes)
    if shape[0] != 3:
        raise UsageError(
            f"--model resnet50 takes colour images, these have {shape[0]} channel(s); "
            "choose --model resnet18"
        )
    return model


_MODELS: dict[str, Callable[[Shape, int], torch.nn.Module]] = {
    "linear": _linear,
    "cnn": _cnn,
    "resnet18": _resnet18,
    "vgg16": _vgg16,
    "resnet50": _resnet50,
}
