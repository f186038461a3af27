"""Buffers: the rule by which the final average combines each of them.

`mean` is for statistics, such as those of batch norm, and for frozen parameters. `max` is for
counters. `first` takes the first member's tensor: masks, permutations, unit vectors, random-number
state. `equal` declares a buffer equal on all members; a difference is reported. `recomputed`
vectors of spectral norm follow from the averaged parameters. `own` buffers are not in the state
dict: each member keeps its own, and they are never averaged.

When the model joins, the rule is chosen from the module's kind and the buffer's values.
`join(buffers={name: rule})` sets it by hand. Rules are part of the layout, so a buffer has one rule
on all members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from washp2p.errors import UsageError
from washp2p.protocol.layout import OWN, RECOMPUTED, RULES, Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Vectors = tuple[str, str, str, "Callable[[torch.Tensor], torch.Tensor] | None"]
STATISTICS = ("running", "mean", "var", "std", "avg", "average", "moment", "count", "scale")
"""Words in the names of buffers that are statistics."""
UNIT = 1e-4
"""By how much a unit vector's length may differ from 1."""


class Kept(NamedTuple):
    """A tensor that is not shuffled: a buffer or frozen parameter.

    `known` is False if the rule of `buffer` is only a guess.
    """

    buffer: Buffer
    tensor: torch.Tensor
    known: bool

    def refuse_change(self, now: torch.Tensor) -> None:
        """Raise UsageError if `now`, the tensor at present, has changed its shape or dtype."""
        buffer, kind = self.buffer, str(now.dtype).removeprefix("torch.")
        if (tuple(now.shape), kind) != (buffer.shape, buffer.dtype):
            raise UsageError(
                f"buffer {buffer.name} is {list(now.shape)} {kind} now, it was "
                f"{list(buffer.shape)} {buffer.dtype} when this member joined; buffers that grow "
                "or change cannot be averaged: register it with persistent=False"
            )


def kept_tensors(model: torch.nn.Module, rules: Mapping[str, str]) -> list[Kept]:
    """All buffers and frozen parameters of `model`, each once, in the order of its modules.

    `rules` maps names to rules that were set by hand. Raises UsageError for an unknown name
    or rule, and for buffers that cannot be averaged or compared.
    """
    found = [
        _kept(name, tensor, persistent, rules.get(name) or rule, known or name in rules)
        for name, tensor, persistent, rule, known in _walk(model)
    ]
    names = {kept.buffer.name for kept in found}
    for name, rule in rules.items():
        if name not in names:
            raise UsageError(
                f"buffers has a rule for {name!r}; the model's buffers are "
                f"{', '.join(sorted(names)) or 'none'}"
            )
        if rule not in RULES:
            raise UsageError(f"buffers[{name!r}] is {rule!r}; expected one of {', '.join(RULES)}")
    for kept in found:
        if kept.buffer.rule == "max" and kept.tensor.dtype.is_floating_point:
            raise UsageError(
                f"buffers[{kept.buffer.name!r}] is 'max', for counters of whole numbers; the buffer"
                f" is {kept.buffer.dtype}: expected mean, first or equal"
            )
    return found


def _walk(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool, str, bool]]:
    """Yield (name, tensor, persistent, rule, known) for each buffer and frozen parameter.

    `known` is False if the rule is only a guess.
    """
    seen = {id(p) for p in model.parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".removeprefix("."), parameter, True, "mean", True
        for name, tensor in module._buffers.items():
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            persistent = name not in module._non_persistent_buffers_set
            full = f"{prefix}.{name}".removeprefix(".")
            rule, known = _rule(module, name, full, tensor) if persistent else (OWN, True)
            yield full, tensor, persistent, rule, known


def _kept(name: str, tensor: torch.Tensor, persistent: bool, rule: str, known: bool) -> Kept:
    _refuse_odd(name, tensor, persistent=persistent)
    kind = str(tensor.dtype).removeprefix("torch.")
    buffer = Buffer(
        name=name, shape=tuple(tensor.shape), dtype=kind, persistent=persistent, rule=rule
    )
    return Kept(buffer, tensor, known)


def _refuse_odd(name: str, tensor: torch.Tensor, *, persistent: bool) -> None:
    """Raise UsageError for a lazy tensor, or a persistent one that is not ordinary and dense."""
    if torch.nn.parameter.is_lazy(tensor):
        raise UsageError(
            f"{name} has no shape yet (a lazy module); run a batch through the model before joining"
        )
    odd = ""
    if tensor.layout is not torch.strided:
        odd = f"has the layout {str(tensor.layout).removeprefix('torch.')}"
    elif tensor.is_quantized:
        odd = f"is quantised ({tensor.dtype})"
    elif tensor.device.type == "meta":
        odd = "is on the meta device"
    elif any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
        odd = "is expanded: several of its values are one"
    elif type(tensor) not in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}:
        odd = f"is a {type(tensor).__name__}"
    if odd and persistent:
        raise UsageError(
            f"buffer {name} {odd}; expected an ordinary dense tensor: convert it before joining, "
            "or register it with persistent=False, which leaves it to each member"
        )


def _rule(module: torch.nn.Module, name: str, full: str, tensor: torch.Tensor) -> tuple[str, bool]:
    """The rule of a persistent buffer, and whether it is more than a guess."""
    if isinstance(module, _SpectralNorm) or hasattr(module, f"{name[:-2]}_orig"):
        return (RECOMPUTED, True) if name.endswith(("_u", "_v")) else ("first", True)
    if isinstance(module, _NormBase):
        return ("max" if name == "num_batches_tracked" else "mean"), True
    if torch.nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        return "first", False  # which is refused
    if tensor.dtype in {torch.bool, torch.uint8} or "mask" in full.lower() or _is_order(tensor):
        return "first", True
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return "max", True
    known = any(word in name.lower() for word in STATISTICS)
    return ("first", True) if _has_unit_vectors(tensor) else ("mean", known)


def _is_order(tensor: torch.Tensor) -> bool:
    """Whether the values are the whole numbers from 0 on, each once."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dim() != 1 or len(tensor) < 2:
        return False
    return torch.equal(tensor.sort().values, torch.arange(len(tensor), device=tensor.device))


def _has_unit_vectors(tensor: torch.Tensor) -> bool:
    if tensor.is_complex() or tensor.numel() < 2 or not 1 <= tensor.dim() <= 2:
        return False
    wide = tensor.detach().float()
    return any(
        wide.shape[d] > 1 and bool(((wide.norm(dim=d) - 1).abs() < UNIT).all())
        for d in range(wide.dim())
    )


def recompute(model: torch.nn.Module, averaged: dict[str, torch.Tensor]) -> list[str]:
    """Recompute the vectors of spectral norm in `averaged` from the weights there, in place.

    `averaged` has tensors of the model's shapes, by plain name. Afterwards each such layer has
    spectral norm 1. Returns the names of vectors that cannot be recomputed.
    """
    left = []
    for prefix, module in model.named_modules():
        for weight, u, v, matrix in _spectral_vectors(prefix, module):
            if matrix is None or weight not in averaged:
                left += [u, v]
                continue
            rows = matrix(averaged[weight]).double()
            left_vectors, _, right_vectors = torch.linalg.svd(rows, full_matrices=False)
            averaged[u].copy_(left_vectors[:, 0])
            averaged[v].copy_(right_vectors[0])
    return [name for name in left if name in averaged]


def _spectral_vectors(prefix: str, module: torch.nn.Module) -> Iterator[Vectors]:
    """Yield the names of weight, u and v, and a function, for each spectral norm in `module`.

    The function turns the weight into a matrix. It is None if u and v cannot be recomputed.
    """
    begin = f"{prefix}." if prefix else ""
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        for name, chain in chains.items():
            for place, norm in enumerate(chain):
                if isinstance(norm, _SpectralNorm) and hasattr(norm, "_u"):
                    at = f"{begin}parametrizations.{name}"
                    matrix = norm._reshape_weight_to_matrix if place == 0 else None
                    yield f"{at}.original", f"{at}.{place}._u", f"{at}.{place}._v", matrix
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            at = f"{begin}{hook.name}"
            yield f"{at}_orig", f"{at}_u", f"{at}_v", hook.reshape_weight_to_matrix
