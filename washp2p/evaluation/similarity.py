"""The similarity of several models' features, layer by layer (PAPA, table 5). No files."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from washp2p.evaluation.repair import NORMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    State = dict[str, torch.Tensor]


class Similarity(NamedTuple):
    """The mean cosine similarity of features at one layer, over images and models, in per cent."""

    layer: str
    between: float
    """The similarity of two members, averaged over all pairs."""
    averaged: float
    """The similarity of a member and the averaged model, averaged over all members."""


@torch.no_grad()
def similarities(
    model: nn.Module, states: Sequence[State], averaged: State, inputs: Iterable[torch.Tensor]
) -> list[Similarity]:
    """For each hidden layer, how similar members' features are to each other and to `averaged`.

    `states` are the members' state dicts. `model` has the architecture of all. `inputs` are batches
    of images, on the device of `model`. An image's features at a layer are all outputs of the layer
    for this image, as one vector, in eval mode.
    """
    networks = [deepcopy(model).eval() for _ in (*states, averaged)]
    for network, state in zip(networks, (*states, averaged), strict=True):
        network.load_state_dict(state)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in hidden_layers(model)}
    pairs = list(combinations(range(len(states)), 2))
    images = 0
    for batch in inputs:
        images += len(batch)
        *members, soup = [_features(network, batch) for network in networks]
        for name in sums:
            own = [features[name] for features in members]
            between = sum(float(cosine_similarity(own[a], own[b]).sum()) for a, b in pairs)
            with_soup = sum(float(cosine_similarity(each, soup[name]).sum()) for each in own)
            sums[name] += torch.tensor([between, with_soup], dtype=torch.float64)
    return [
        Similarity(
            name,
            100 * float(between) / images / max(1, len(pairs)),
            100 * float(with_soup) / images / len(states),
        )
        for name, (between, with_soup) in sums.items()
    ]


def hidden_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers and blocks of `model` that own parameters, by name, in order.

    Batch norms and the last layer are left out. The parts of a `Sequential` count one by one:
    blocks of a ResNet, convolutions of a VGG.
    """
    found = dict(_parts("", model))
    return dict(list(found.items())[:-1])


def _parts(prefix: str, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            yield from _parts(f"{prefix}{name}.", module)
        elif not isinstance(module, NORMS) and any(True for _ in module.parameters()):
            yield f"{prefix}{name}", module


def _features(model: nn.Module, batch: torch.Tensor) -> State:
    """The outputs of each hidden layer for a batch: images x features."""
    found = {}
    handles = []
    for name, layer in hidden_layers(model).items():

        def keep(_: nn.Module, __: object, output: torch.Tensor, name: str = name) -> None:
            found[name] = output.flatten(1)

        handles.append(layer.register_forward_hook(keep))
    model(batch)
    for handle in handles:
        handle.remove()
    return found
