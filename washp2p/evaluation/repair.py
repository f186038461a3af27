"""REPAIR for p networks (PAPA, Algorithms 4 and 5; Jordan et al. 2023). No files.

Averaging networks shrinks the variance of their features. After REPAIR every preactivation of the
averaged network has the mean and the standard deviation that its members have on average.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    State = dict[str, torch.Tensor]
    Inputs = Sequence[torch.Tensor]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
EPSILON = 1e-12
"""Added to variances: a unit that never varies is left as it is."""


class _Moments:
    """Mean and variance of a layer's channels (dimension 1), averaged over batches.

    They are computed as a batch norm would. Each batch has the same weight.
    """

    def __init__(self) -> None:
        self._batches = 0
        self.mean = torch.zeros(())
        self.variance = torch.zeros(())

    @property
    def deviation(self) -> torch.Tensor:
        return (self.variance + EPSILON).sqrt()

    def count(self, features: torch.Tensor) -> None:
        """Add a batch."""
        others = [d for d in range(features.dim()) if d != 1]
        mean = features.mean(dim=others)
        variance = features.var(dim=others, correction=0)
        self._batches += 1
        self.mean = self.mean + (mean - self.mean) / self._batches
        self.variance = self.variance + (variance - self.variance) / self._batches


@torch.no_grad()
def repair(
    model: nn.Module,
    states: Sequence[State],
    averaged: State,
    batches: Sequence[Inputs],
    weights: Sequence[float] | None = None,
) -> State:
    """The state dict `averaged` with its preactivations' moments repaired: new CPU tensors.

    `model` has the architecture of all; it is not changed. `states` are the members' state dicts.
    `batches` has the inputs of each member, and last those of the averaged model, on the device of
    `model`. All see the same images, each by its own augmentation. `weights` are the members'
    shares in the average, equal if not given. Layers without a bias get the standard deviation
    only: in the papers' networks a batch norm follows, which takes the mean away. Running
    statistics of batch norms are computed anew.

    Layers are repaired one after the other, each on the features from the repaired layers before
    it. So the moments are exact whatever the number of batches. That takes a pass over the averaged
    model's inputs for each layer. Algorithm 4 uses temporary batch norms instead, which normalise
    each batch by itself. With them, a soup of identical models would not be that model.
    """
    assert len(batches) == len(states) + 1
    network = deepcopy(model)
    counted = []
    for state, inputs in zip(states, batches, strict=False):
        network.load_state_dict(state)
        counted.append(moments(network, inputs))
    network.load_state_dict(averaged)
    restore(network, mean_moments(counted, weights), batches[-1])
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def moments(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Mean and standard deviation of each preactivation channel of `model`, as one vector.

    For each layer in turn, the vector has the channels' means, then their deviations. Running
    statistics of batch norms in `model` are computed anew.
    """
    counted = _moments(model, preactivations(model), inputs)
    parts = [part for each in counted for part in (each.mean, each.deviation)]
    return torch.cat(parts) if parts else torch.empty(0)


def mean_moments(
    counted: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """The mean of several networks' `moments`; `weights` are equal if not given."""
    shares = weights or [1 / len(counted)] * len(counted)
    total = torch.zeros_like(counted[0])
    for each, share in zip(counted, shares, strict=True):
        total += share * each
    return total


def restore_mean(
    model: nn.Module, counted: Sequence[torch.Tensor], inputs: Callable[[], Inputs]
) -> None:
    """Give `model` the mean of several networks' `moments`, as `restore` does.

    A network whose moments are not all finite is left out. If none is left, nothing happens and
    `inputs` is not called.
    """
    usable = [each for each in counted if each.isfinite().all()]
    if usable:
        restore(model, mean_moments(usable), inputs())


@torch.no_grad()
def restore(model: nn.Module, targets: torch.Tensor, inputs: Inputs) -> None:
    """Give the preactivations of `model` the moments `targets`, in place, layer by layer.

    Running statistics of batch norms are computed anew.
    """
    layers = preactivations(model)
    sizes = [layer.weight.shape[0] for layer in layers for _ in range(2)]
    wanted = targets.split(sizes)
    for layer, mean, deviation in zip(layers, wanted[::2], wanted[1::2], strict=True):
        (own,) = _moments(model, [layer], inputs)
        scale = deviation / own.deviation
        layer.weight.mul_(scale.view([-1] + [1] * (layer.weight.dim() - 1)))
        if layer.bias is not None:
            layer.bias.sub_(own.mean).mul_(scale).add_(mean)
    reset_batch_norm(model, inputs)


def reset_batch_norm(model: nn.Module, inputs: Iterable[torch.Tensor]) -> None:
    """Compute the running statistics of the `model`'s batch norms anew from `inputs` (Algorithm 5).

    Each batch has the same weight. The model keeps its train or eval mode. Without batch norms
    nothing happens.
    """
    if any(isinstance(module, NORMS) for module in model.modules()):
        _forward(model, inputs)


def preactivations(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolution layers of `model`, without the last, which gives the logits.

    They are in the order of registration. Each must be registered after the layers that feed it, as
    in all models that are made of blocks.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[:-1]


def _moments(
    model: nn.Module, layers: Sequence[nn.Module], inputs: Iterable[torch.Tensor]
) -> list[_Moments]:
    """The moments of each layer's outputs; batch norms normalise each batch by itself."""
    counted = [_Moments() for _ in layers]
    handles = [
        layer.register_forward_hook(lambda _, __, output, each=each: each.count(output))
        for layer, each in zip(layers, counted, strict=True)
    ]
    _forward(model, inputs)
    for handle in handles:
        handle.remove()
    return counted


@torch.no_grad()
def _forward(model: nn.Module, inputs: Iterable[torch.Tensor]) -> None:
    """Run `inputs` through the model; batch norms compute their statistics anew."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.eval()
    for norm in norms:
        norm.train()
    for batch in inputs:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
