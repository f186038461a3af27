"""Pretrained weights from a file or from timm, for all layers of a model but the last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from washp2p.errors import UsageError
from workers.training.models import TIMM, from_timm, last_layer

if TYPE_CHECKING:
    from washp2p import RunConfig
    from workers.training.models import Shape

    State = dict[str, torch.Tensor]

COLOURS = 3
SAFETENSORS = ".safetensors"


def load_pretrained(model: torch.nn.Module, config: RunConfig, shape: Shape, classes: int) -> None:
    """Load the weights that `config` names into `model`. The last layer keeps its own weights.

    Raises UsageError if the weights cannot be read or downloaded, or do not fit.
    """
    if config.training.weights == TIMM:
        state = from_timm(config.training.model, shape, classes, pretrained=True).state_dict()
    else:
        state = read_state(Path(config.training.weights))
    own = model.state_dict()
    by_name = config.training.weights.endswith(SAFETENSORS) or bool(own.keys() & state.keys())
    try:
        fill(model, state if by_name else by_position(own, state))
    except ValueError as error:
        raise UsageError(
            f"--weights {config.training.weights} does not fit --model {config.training.model}: "
            f"{error}"
        ) from None


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file, or of a file that torch saved (tensors only, no code).

    Raises UsageError if it cannot be read.
    """
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what may be in a file
        first = (str(error) or repr(error)).splitlines()[0]
        raise UsageError(
            f"cannot read --weights {path}: {first:.200}; expected a state dict, as safetensors or "
            "saved by torch"
        ) from None
    for wrapped in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapped), dict):
            state = state[wrapped]
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UsageError(f"--weights {path} is no state dict; expected tensors by name")
    return state


def by_position(own: State, state: State) -> State:
    """`state` with its tensors renamed, in order, to the names in `own`.

    Raises ValueError unless both have equally many tensors and the last parts of their names agree.
    """
    kinds = [[name.rpartition(".")[2] for name in names] for names in (own, state)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"it has {len(state)} tensors by other names; expected {len(own)}, in the same order"
        )
    return dict(zip(own, state.values(), strict=True))


@torch.no_grad()
def fill(model: torch.nn.Module, state: State) -> None:
    """Copy `state` into `model`, by name.

    The last layer keeps its own tensors. If the model takes grey images and the weights are for
    colour images, a convolution's weights are summed over the three channels. Raises ValueError at
    the first tensor that does not fit; then nothing is copied.
    """
    head = {id(parameter) for parameter in last_layer(model)}
    own = model.state_dict(keep_vars=True)
    pairs = []
    for name, tensor in own.items():
        if id(tensor) in head:
            continue
        if name not in state:
            raise ValueError(f"it has no {name}")
        value = state[name]
        if value.dim() == 4 and tensor.shape == (value.shape[0], 1, *value.shape[2:]):
            value = value.sum(dim=1, keepdim=True) if value.shape[1] == COLOURS else value
        if value.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}; expected {tuple(tensor.shape)}")
        pairs.append((tensor, value))
    for tensor, value in pairs:
        tensor.copy_(value)
