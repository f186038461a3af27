"""Which parameters of a model are shuffled, in what order, and which models cannot take part.

Reads a model and its optimizer, and changes neither.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from washp2p.errors import UsageError
from washp2p.protocol.layout import ITEM_BYTES, Entry, aligned

if TYPE_CHECKING:
    from collections.abc import Sequence


def plain_model(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The module inside a compiled or replicated `model`, or `model` itself.

    Also returns the prefix that the module's names have in the state dict of `model`.
    """
    prefix = ""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model, prefix = inner, prefix + "_orig_mod."
        elif isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model, prefix = model.module, prefix + "module."
        else:
            return model, prefix


def refuse_what_cannot_be_shuffled(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raise UsageError for sparse gradients, sharded parameters and replicated submodules."""
    sparse = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
        and module.sparse
        and module.weight.requires_grad
    ]
    if sparse or isinstance(optimizer, torch.optim.SparseAdam):
        raise UsageError(
            f"gradients of {', '.join(sparse) or 'the parameters'} are sparse; expected dense "
            "ones: sparse=False, and another optimizer than SparseAdam"
        )
    fsdp = sys.modules.get("torch.distributed.fsdp")
    tensor = sys.modules.get("torch.distributed.tensor")
    for module in model.modules():
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            raise UsageError(
                "a part of the model is in DistributedDataParallel; expected all of it, or nothing"
            )
        if (fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)) or any(
            tensor is not None and isinstance(parameter, tensor.DTensor)
            for parameter in module.parameters(recurse=False)
        ):
            raise UsageError(
                f"the parameters of {type(module).__name__} are sharded over processes; expected "
                "whole ones: a member is not to be larger than its device"
            )


def owners(
    model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]
) -> list[tuple[dict[str, torch.nn.Parameter | None], str]]:
    """All places that hold one of `parameters`, each as a module's `_parameters` and the key."""
    wanted = {id(parameter) for parameter in parameters}
    return [
        (module._parameters, name)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in wanted
    ]


def in_flat_order(
    model: torch.nn.Module, last: str = ""
) -> tuple[list[torch.nn.Parameter], list[Entry], str]:
    """The trainable parameters in flat order, each once, with their entries and dtype.

    A layer is a module that owns trainable parameters, including those of its parametrizations.
    Layers are in the order of registration. `last` names a module, or a parameter, whose layer
    becomes the last one. Raises UsageError if there are no trainable parameters, or if their dtypes
    or devices differ.
    """
    parameters: list[torch.nn.Parameter] = []
    entries: list[Entry] = []
    seen: set[int] = set()
    layers: dict[str, int] = {}
    offset = 0
    dtype, device = "", torch.device("cpu")
    for prefix, module in model.named_modules():
        own = [
            (f"{prefix}.{name}".removeprefix("."), parameter)
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in seen
        ]
        for name, parameter in own:
            seen.add(id(parameter))
            if torch.nn.parameter.is_lazy(parameter):
                raise UsageError(
                    f"{name} has no shape yet (a lazy module); run a batch through the model "
                    "before joining"
                )
            kind = str(parameter.dtype).removeprefix("torch.")
            if not parameters:
                dtype, device = kind, parameter.device
            if kind not in ITEM_BYTES:
                raise UsageError(
                    f"parameter {name} is {kind}; expected one of {', '.join(ITEM_BYTES)}: "
                    "convert or freeze it"
                )
            if (kind, parameter.device) != (dtype, device):
                raise UsageError(
                    f"parameter {name} is {kind} on {parameter.device}, others are {dtype} on "
                    f"{device}; expected one dtype and one device: convert the model before joining"
                )
            offset = aligned(offset, ITEM_BYTES[kind])
            dense = torch.empty_like(parameter, device="meta")
            owner = f".{prefix}".partition(".parametrizations.")[0]
            entry = Entry(
                name=name,
                shape=tuple(parameter.shape),
                stride=tuple(dense.stride()),
                layer=layers.setdefault(owner, len(layers)),
                offset=offset,
            )
            parameters.append(parameter)
            entries.append(entry)
            offset += entry.size
    if not parameters:
        raise UsageError("the model has no trainable parameter; expected at least one")
    if last:
        entries = _with_last(model, parameters, entries, last)
    return parameters, entries, dtype


def _with_last(
    model: torch.nn.Module,
    parameters: Sequence[torch.nn.Parameter],
    entries: Sequence[Entry],
    last: str,
) -> list[Entry]:
    """The entries, reordered so that the layer named `last` is the last one."""
    meant = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name == last or name.startswith(f"{last}.")
    }
    at_the_end = {e.layer for p, e in zip(parameters, entries, strict=True) if id(p) in meant}
    if not at_the_end:
        names = sorted({entry.name.rpartition(".")[0] or entry.name for entry in entries})
        raise UsageError(
            f"--last is {last!r}, which has no trainable parameters; the model's layers are "
            f"{', '.join(names)}"
        )
    others = sorted({entry.layer for entry in entries} - at_the_end)
    order = {layer: number for number, layer in enumerate(others)}
    return [replace(e, layer=order.get(e.layer, len(others))) for e in entries]
