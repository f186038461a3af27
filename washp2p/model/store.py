"""The store: the only code that changes a member's model and optimizer.

A new store moves every trainable parameter into one flat vector in the layout's order. So a round
is one gather and one scatter, whatever the number of parameters. Values, dtypes, strides and the
identity of the `Parameter` objects stay the same. Optimizer state moves in when it first exists.
`release` undoes all of it. This module uses no sockets and no plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from washp2p.errors import UsageError
from washp2p.model.buffers import kept_tensors, recompute
from washp2p.model.device_copies import Staging, copies_for
from washp2p.model.flat_memory import FlatParameters, refuse_overlaps
from washp2p.model.optimizer_slots import OptimizerSlots
from washp2p.model.optimizers import LearningRate, give_state, state_of
from washp2p.model.parameters import (
    in_flat_order,
    owners,
    plain_model,
    refuse_what_cannot_be_shuffled,
)
from washp2p.model.state_dict import StateDict, refuse_added_tensors
from washp2p.protocol.layout import OWN, Layout, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from washp2p.model.buffers import Kept
    from washp2p.model.device_copies import DeviceCopies, Mark, Places, Vectors
    from washp2p.model.optimizers import Plain

PARAM = "param"
SLOTS = 8
"""The most state tensors, each of a parameter's size, that an optimizer is assumed to have."""
PLAIN_BYTES = 16 << 20

State = dict[str, torch.Tensor]
"""A member's model: by name, each tensor's values in a one-dimensional contiguous CPU tensor."""


class Store:
    """Flat access to a model's trainable parameters, its optimizer state and its buffers.

    `slots` names the optimizer state that is exchanged. `copies` is the object that copies values
    (default: `copies_for` the parameters' device). `last` and `buffers` are as in `join`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        slots: Sequence[str] = (),
        copies: DeviceCopies | None = None,
        *,
        last: str = "",
        buffers: Mapping[str, str] | None = None,
    ) -> None:
        """Flatten `model` in place. Raises UsageError for a model that cannot be exchanged."""
        self._model, self._prefix = plain_model(model)
        self._optimizer = optimizer
        self.learning_rate = LearningRate(optimizer)
        refuse_what_cannot_be_shuffled(self._model, optimizer)
        self._kept = kept_tensors(self._model, buffers or {})
        self._parameters, entries, dtype = in_flat_order(self._model, last)
        self.layout = Layout(
            tuple(entries),
            (Slot(name=PARAM, dtype=dtype), *(Slot(name=s, dtype=dtype) for s in slots)),
            tuple(kept.buffer for kept in self._kept),
        )
        self._dict = StateDict(
            self._model,
            self._prefix,
            dict(zip((e.name for e in entries), self._parameters, strict=True))
            | {kept.buffer.name: kept.tensor for kept in self._persistent()},
            self._now,
        )
        trained = list(zip((e.name for e in entries), self._parameters, strict=True))
        refuse_overlaps(trained, [(kept.buffer.name, kept.tensor) for kept in self._kept])
        self._memory = FlatParameters(
            self._parameters, entries, self.layout.size, owners(self._model, self._parameters)
        )
        self._ends = np.array([e.offset + e.size for e in entries])
        self._optimized = _count(optimizer)
        self._optimizer_slots = OptimizerSlots(
            optimizer, self._parameters, entries, self.layout.slots[1:], self._memory.vector
        )
        self._vectors = [self._memory.vector, *self._optimizer_slots.vectors]
        self._written: list[npt.NDArray[np.int64]] | None = None
        self.copies = copies or copies_for(self._memory.vector.device)
        """Copies values to and from the flat vectors."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._memory.vector.device

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The dtypes of the slots."""
        return [vector.dtype for vector in self._vectors]

    @property
    def vector(self) -> torch.Tensor:
        """All parameters, flat; do not change it."""
        return self._memory.vector

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """The trainable parameters, in the layout's order; do not change the list."""
        return self._parameters

    @property
    def unknown_buffers(self) -> list[str]:
        """Names of buffers that are averaged because no better rule is known."""
        return [kept.buffer.name for kept in self._kept if not kept.known]

    def staging(self) -> Staging:
        """Host memory for values of all slots, either to send or to receive."""
        return self.copies.staging(self.dtypes)

    def refresh(self) -> None:
        """Bring the vectors up to date with what training has done to the model's memory.

        Call it once per round, before values are read or written. Raises UsageError if the
        parameters of the model or optimizer are no longer the ones that joined.
        """
        self._memory.refresh()
        if _count(self._optimizer) != self._optimized:
            raise UsageError(
                f"the optimizer has {_count(self._optimizer)} parameters, {self._optimized} when "
                "the model joined; expected the same ones to the end: add them before joining"
            )
        self._optimizer_slots.refresh()

    def gather(self, places: Places, out: Vectors) -> Mark:
        """Copy the values of slot k at `places` into `out[k]`, for each slot.

        Copies are complete once the mark is done. `out[k]` is host memory from `staging`, as long
        as `places`. State that does not exist yet reads as zeros. Call `refresh` before.
        """
        return self.copies.gather(self._vectors, places, out)

    def pick(self, places: Places) -> tuple[Vectors, Mark]:
        """Like `gather`, but into new vectors on the model's device. Returns them and the mark."""
        return self.copies.pick(self._vectors, places)

    def keep(self, places: Places) -> Vectors:
        """A copy of the values at `places`, such as `add` takes as `own`."""
        return self.copies.keep(self._vectors, places)

    def scatter(self, places: Places, values: Vectors) -> None:
        """Assign `values[k]` to slot k at `places`. State that does not exist is created."""
        self.copies.assign(self._vectors, places, values)
        self._wrote(places)

    def add(self, places: Places, values: Vectors, own: Vectors) -> None:
        """Add `values[k] - own[k]` to slot k at `places`. State that does not exist is created."""
        self.copies.add(self._vectors, places, values, own)
        self._wrote(places)

    def pull(self, places: Places, values: Vectors, weight: float) -> None:
        """Move slot k at `places` towards `values[k]`; `weight` 1 replaces the values."""
        if weight == 1:
            self.copies.assign(self._vectors, places, values)
        else:
            self.copies.pull(self._vectors, places, values, weight)
        self._wrote(places)

    def keep_track(self) -> None:
        """Remember all indices that are written from now on, for `take_written`."""
        self._written = []

    def take_written(self) -> npt.NDArray[np.int64]:
        """All indices written since the last call, each once, ascending."""
        assert self._written is not None
        written, self._written = self._written, []
        return np.unique(np.concatenate(written)) if written else np.empty(0, dtype=np.int64)

    def values(self, *, frozen: bool = True) -> State:
        """The model's values by name: one-dimensional contiguous CPU tensors.

        Parameters come first, in memory order, as views of the flat vector (copies if it is not on
        the CPU). Buffers follow, and frozen parameters if `frozen`.
        """
        flat = self._memory.vector.detach().cpu()
        state = {e.name: flat[e.offset : e.offset + e.size] for e in self.layout.entries}
        for kept in self._persistent():
            if frozen or not isinstance(kept.tensor, torch.nn.Parameter):
                now = self._now(kept.buffer.name).detach()
                state[kept.buffer.name] = now.reshape(-1).contiguous().cpu()
        return state

    @property
    def frozen(self) -> list[str]:
        """Names of the frozen parameters."""
        kept = self._persistent()
        return [k.buffer.name for k in kept if isinstance(k.tensor, torch.nn.Parameter)]

    @property
    def largest_snapshot(self) -> int:
        """An upper bound on the bytes of this member's snapshot."""
        buffers = sum(kept.tensor.nbytes for kept in self._persistent())
        return (1 + SLOTS) * self._memory.vector.nbytes + buffers + PLAIN_BYTES

    @torch.no_grad()
    def load_values(self, state: State) -> None:
        """Overwrite the model with all or some of the `values` of a model with the same layout.

        If their names, lengths or dtypes do not fit, raises ValueError and overwrites nothing.
        """
        targets = self._targets()
        for name, value in state.items():
            target = targets.get(name)
            if target is None or (value.dtype, *value.shape) != (target.dtype, target.numel()):
                raise ValueError(f"{name} is not in this model, or of other length or dtype")
        numbers = []
        flat = self._memory.vector
        for number, entry in enumerate(self.layout.entries):
            if entry.name in state:
                flat[entry.offset : entry.offset + entry.size].copy_(state[entry.name])
                numbers.append(number)
        self._memory.wrote(numbers)
        for kept in self._persistent():
            target = targets[kept.buffer.name]
            if kept.buffer.name in state and target.numel():
                target.copy_(state[kept.buffer.name].view(target.shape))

    def values_of(self, given: Mapping[str, Any]) -> State:
        """The `values` of a model like this one, made from its state dict `given`: new tensors.

        Keys of `given` may have the prefix of a compiled or replicated model, or not. Raises
        UsageError if it is no state dict of such a model.
        """
        found = self._dict.tensors_in(given)
        state = {}
        entries = {entry.name: entry for entry in self.layout.entries}
        for name, value in found.items():
            entry = entries.get(name)
            if entry is None:
                target = self._now(name)
                state[name] = value.detach().to("cpu", target.dtype, copy=True).reshape(-1)
            else:
                flat = torch.empty(entry.size, dtype=self._memory.vector.dtype)
                flat.as_strided(entry.shape, entry.stride).copy_(value.detach())
                state[name] = flat
        return {name: state[name] for name in self._targets()}

    def is_finite(self) -> bool:
        """Whether every trainable parameter is finite."""
        return bool(self._memory.vector.isfinite().all())

    def optimizer_state(self) -> tuple[list[torch.Tensor], Plain]:
        """What `optimizers.state_of` returns for this optimizer. Raises TypeError as it does."""
        return state_of(self._optimizer, self._parameters)

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], plain: Plain) -> None:
        """Restore what `optimizer_state` returned on a member with the same layout and optimizer.

        Raises ValueError if the state does not fit.
        """
        give_state(self._optimizer, self._parameters, tensors, plain)
        self._optimizer_slots.forget()

    def state_dict(self, state: State, *, trainable_only: bool = False) -> dict[str, Any]:
        """The model's state dict with the values in `state`: fresh contiguous CPU tensors.

        Keys are those of the model as it was given to the store, compiled or not. Entries that are
        no tensors (extra state) are this member's. With `trainable_only`, it has only the trainable
        parameters.
        """
        if trainable_only:
            trained = {entry.name for entry in self.layout.entries}
            state = {name: value for name, value in state.items() if name in trained}
        return self._dict.filled(self._shaped(state), trainable_only=trainable_only)

    def recompute_buffers(self, state: State) -> list[str]:
        """Recompute, in place, the buffers in `state` whose rule is `recomputed`.

        Returns the names of those that could not be recomputed.
        """
        return recompute(self._model, self._shaped(state))

    def _shaped(self, state: State) -> State:
        """The tensors of `state` in the model's shapes; memory is shared."""
        entries = {entry.name: entry for entry in self.layout.entries}
        return {
            name: value.as_strided(entries[name].shape, entries[name].stride)
            if name in entries
            else value.view(self._now(name).shape)
            for name, value in state.items()
        }

    def release(self) -> None:
        """Give model and optimizer memory of their own again."""
        self._memory.release()
        self._optimizer_slots.release()

    def _persistent(self) -> list[Kept]:
        return [kept for kept in self._kept if kept.buffer.rule != OWN]

    def _targets(self) -> State:
        """The tensors that `values` reads, by name."""
        named = dict(zip((e.name for e in self.layout.entries), self._parameters, strict=True))
        return named | {k.buffer.name: self._now(k.buffer.name) for k in self._persistent()}

    def _now(self, name: str) -> torch.Tensor:
        """The buffer (or frozen parameter) `name` at present. Raises UsageError if it is gone."""
        prefix, _, own = name.rpartition(".")
        module = self._model.get_submodule(prefix)
        held: dict[str, torch.Tensor | None] = {**module._parameters, **module._buffers}
        tensor = held.get(own)
        if tensor is None:
            raise UsageError(
                f"the model has no buffer {name} any more; it had one when it joined: expected the "
                "same ones to the end"
            )
        return tensor

    def check_model(self) -> None:
        """Raise UsageError, with a tensor's name, if a change would make the average wrong.

        Such a change is a tensor added since joining, a buffer with another shape or dtype, or a
        tensor that two modules shared and share no longer.
        """
        self._dict.check()
        expected = {id(tensor) for tensor in self._targets().values()}
        refuse_added_tensors(self._model, expected, {kept.buffer.name for kept in self._kept})
        for kept in self._persistent():
            kept.refuse_change(self._now(kept.buffer.name))

    def _wrote(self, places: Places) -> None:
        """Copy what was written at `places` to Parameters and state that lie outside the vector."""
        if self._written is not None:
            self._written.append(places.host)
        if (self._optimizer_slots.incomplete or self._memory.copies) and len(places):
            hit = np.unique(np.searchsorted(self._ends, places.host, side="right")).tolist()
            self._memory.wrote(hit)
            self._optimizer_slots.create(hit)


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
