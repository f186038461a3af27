"""The parameters of a model that members shuffle: which, in what order; and which cannot be.

Looks at a model and its optimizer, changes neither.
"""

from __future__ import annotations

import sys

import torch

from washp2p.errors import UsageError
from washp2p.layout import ITEM_BYTES, Entry, aligned


def plain_model(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The module itself, if `model` is one that is compiled or replicated; parameters shared.

    And what its names begin with in the state dict of `model`.
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
    """Raise UsageError for sharded parameters and sparse gradients."""
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


def in_flat_order(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[Entry], str]:
    """Trainable parameters in flat order, each once, where each one lies, and their dtype.

    Raises UsageError if there are none, or they are not alike.
    """
    parameters: list[torch.nn.Parameter] = []
    entries: list[Entry] = []
    seen: set[int] = set()
    offset = layer = 0
    dtype, device = "", torch.device("cpu")
    for prefix, module in model.named_modules():
        own = [
            (f"{prefix}.{name}".removeprefix("."), parameter)
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in seen
        ]
        for name, parameter in own:
            seen.add(id(parameter))
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
            entry = Entry(
                name=name,
                shape=tuple(parameter.shape),
                stride=tuple(dense.stride()),
                layer=layer,
                offset=offset,
            )
            parameters.append(parameter)
            entries.append(entry)
            offset += entry.size
        layer += bool(own)
    if not parameters:
        raise UsageError("the model has no trainable parameter; expected at least one")
    return parameters, entries, dtype
