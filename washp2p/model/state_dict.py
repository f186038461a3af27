"""Fills a model's state dict with other values, under the names that the model uses.

Usually an entry is one of the model's tensors. Other entries (extra state) are copied. Some models
make state dicts that lack some of their tensors, or have others instead. Then the values are put
into the model for a moment, and the model makes its state dict.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from washp2p.errors import UsageError
from washp2p.model.optimizers import NATURAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping


class StateDict:
    """Makes state dicts of `model` with other values. Their keys begin with `prefix`.

    `tensors` has the model's tensors by plain name, without the prefix.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        prefix: str,
        tensors: dict[str, torch.Tensor],
        now: Callable[[str], torch.Tensor],
    ) -> None:
        """The callback `now` takes a plain name and returns the model's present tensor."""
        self._model = model
        self._prefix = prefix
        self._tensors = tensors
        self._now = now
        self._names = self._look()

    def check(self) -> None:
        """Raise UsageError if two modules shared a tensor when the model joined, and no longer
        do.
        """
        if self._names is None:
            return
        own = self._model.state_dict(keep_vars=True)
        seen: dict[str, str] = {}
        for key, name in self._names.items():
            first = seen.setdefault(name, key)
            if own.get(first) is not own.get(key):
                raise UsageError(
                    f"{first} and {key} were one tensor when the model joined, and are two now; "
                    "expected it to stay so: copy into it instead of assigning, or part them before"
                )

    def _look(self) -> dict[str, str] | None:
        """The plain name of each tensor, by its key in the model's state dict.

        None if some of the model's tensors are not entries there, or if it cannot be made.
        """
        plain = {id(tensor): name for name, tensor in self._tensors.items()}
        try:
            own = self._model.state_dict(keep_vars=True)
            names = {key: plain[id(value)] for key, value in own.items() if id(value) in plain}
        except NATURAL:
            return None
        return names if set(names.values()) == set(plain.values()) else None

    def filled(
        self, values: Mapping[str, torch.Tensor], *, trainable_only: bool = False
    ) -> dict[str, Any]:
        """The model's state dict with `values` (by plain name): new contiguous CPU tensors.

        With `trainable_only`, entries for which `values` has no tensor are left out.
        """
        if self._names is None and not trainable_only:
            return self._asked(values)
        if self._names is None:
            names = {name: name for name in values}
            own: dict[str, Any] = dict(values)
        else:
            names, own = self._names, self._model.state_dict(keep_vars=True)
        state = {}
        for key, value in own.items():
            name = names.get(key)
            if name is not None and name in values:
                fresh = values[name].clone(memory_format=torch.contiguous_format)
                state[self._prefix + key] = fresh
            elif not trainable_only:
                state[self._prefix + key] = _copy(value)
        return state

    def tensors_in(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of `state`, by plain name. Raises UsageError if `state` does not fit."""
        found = {}
        if not isinstance(state, dict) and not hasattr(state, "items"):
            raise UsageError(
                f"what is to be averaged is a {type(state).__name__}; expected a state dict, or a "
                "function that returns one"
            )
        if self._names is None:
            raise UsageError(
                "the model makes a state dict of its own, so that no other one can be averaged in "
                "its place; call average() without"
            )
        names = self._names
        for key, name in names.items():
            value = state.get(self._prefix + key, state.get(key))
            shape = self._tensors[name].shape
            if not isinstance(value, torch.Tensor) or value.shape != shape:
                got = "nothing"
                if isinstance(value, torch.Tensor):
                    got = f"shape {tuple(value.shape)}"
                raise UsageError(
                    f"what is to be averaged has {got} under {key}; expected shape "
                    f"{tuple(shape)}: a state dict of a model like the one that trained"
                )
            found[name] = value
        return found

    @torch.no_grad()
    def _asked(self, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The state dict that the model makes when it holds `values`. The model gets its own
        values back.
        """
        before = {name: self._now(name).detach().clone() for name in values}
        try:
            for name, value in values.items():
                self._now(name).copy_(value)
            own = self._model.state_dict()
            return {self._prefix + key: _copy(value) for key, value in own.items()}
        finally:
            for name, value in before.items():
                self._now(name).copy_(value)


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and persistent buffers that a model has now, by plain name."""
    for prefix, module in model.named_modules():
        kept = {
            name: tensor
            for name, tensor in module._buffers.items()
            if name not in module._non_persistent_buffers_set
        }
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                yield f"{prefix}.{name}".removeprefix("."), tensor


def refuse_added_tensors(
    model: torch.nn.Module, expected: Collection[int], names: Collection[str]
) -> None:
    """Raise UsageError for a tensor that was added to the model.

    `expected` has the ids of known tensors, `names` the names of known buffers.
    """
    for name, tensor in named_tensors(model):
        if id(tensor) not in expected and name not in names:
            raise UsageError(
                f"{name} was added to the model after it joined, and would be neither exchanged"
                " nor averaged; add it before joining (run a batch through the model first), or "
                "register it with persistent=False"
            )


def _copy(value: Any) -> Any:
    """A copy that shares no memory with `value`. Tensors are copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    return copy.deepcopy(value)
