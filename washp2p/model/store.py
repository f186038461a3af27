"""The store: the only place that touches a member's model and optimizer.

When it is made, every trainable parameter moves into one flat vector, in the layout's order, so
that a round is one gather and one scatter whatever the number of parameters. Values, dtypes,
strides and the identity of the `Parameter` objects stay as they were. Optimizer state follows when
it first exists. `release` undoes all of it. No sockets, no plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from washp2p.errors import UsageError
from washp2p.model.buffers import kept_tensors, recompute
from washp2p.model.device_copies import Staging, lane_for
from washp2p.model.flat_memory import FlatParameters, own_storage, refuse_overlaps, view_of
from washp2p.model.optimizers import give_state, state_of
from washp2p.model.parameters import (
    in_flat_order,
    owners,
    plain_model,
    refuse_what_cannot_be_shuffled,
)
from washp2p.model.state_dict import StateDict, named_tensors
from washp2p.protocol.layout import OWN, Layout, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from washp2p.model.buffers import Kept
    from washp2p.model.device_copies import Lane, Mark, Places, Vectors
    from washp2p.model.optimizers import Plain

PARAM = "param"
SLOTS = 8
"""State tensors of a parameter's size that an optimizer may have."""
PLAIN_BYTES = 16 << 20
KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)

State = dict[str, torch.Tensor]
"""A member's model: by name, each tensor's values in a one-dimensional contiguous CPU tensor."""


def optimizer_slots(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The state that WASH+Opt shuffles along with the parameters: all tensors shaped like them.

    SGD: `momentum_buffer` (none without momentum); Adam and AdamW: `exp_avg`, `exp_avg_sq`, and
    `max_exp_avg_sq` under AMSGrad; of others, what one of their kind has after a step. Raises
    UsageError if that cannot be found out.
    """
    names: dict[str, None] = {}
    like: Any = type(optimizer)
    try:
        for group in optimizer.param_groups:
            options = {k: v for k, v in group.items() if k not in {"params", "initial_lr"}}
            first = group["params"][0]
            probe = torch.nn.Parameter(torch.zeros(2, 3, dtype=first.dtype, device=first.device))
            probe.grad = torch.zeros_like(probe)
            twin = like([{"params": [probe], **options}])
            twin.step()
            for name, value in twin.state[probe].items():
                if isinstance(value, torch.Tensor) and value.shape == probe.shape:
                    names[name] = None
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UsageError(
            f"wash-opt cannot find out what state {like.__name__} has: {error!r:.100}; use SGD, "
            "Adam or AdamW, or --method wash, which shuffles parameters alone"
        ) from None
    return tuple(names)


class Store:
    """Flat access to a model's trainable parameters, its optimizer state and its buffers.

    `slots` names the optimizer state to exchange besides the parameters; `lane` is how values
    come and go (default: what the parameters' device calls for). `last` names the module whose
    layer is the last one, `buffers` sets rules by hand: as in `join`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        slots: Sequence[str] = (),
        lane: Lane | None = None,
        *,
        last: str = "",
        buffers: Mapping[str, str] | None = None,
    ) -> None:
        """Flatten `model` in place. Raises UsageError for a model that cannot be exchanged."""
        self._model, self._prefix = plain_model(model)
        self._optimizer = optimizer
        self.highest_lr = 0.0
        """The highest learning rate at any step, or that a scheduler calls its `initial_lr`."""
        self.lr_share = 1.0
        """That of the last step, as a share of it: of the first parameter group; 1 without any."""
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
        self._flat = {PARAM: self._memory.vector}
        self._ends = np.array([e.offset + e.size for e in entries])
        self._optimized = _count(optimizer)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._stateful = {k for k, p in enumerate(self._parameters) if id(p) in owned and p.numel()}
        self._missing = set(self._stateful) if slots else set()
        self._states: list[int] = []
        self._watched: list[tuple[dict[str, Any], str]] = []
        self._pointers: list[int] = []
        for slot in self.layout.slots[1:]:
            self._flat[slot.name] = torch.zeros_like(self._flat[PARAM])
        self._vectors = list(self._flat.values())
        self._written: list[npt.NDArray[np.int64]] | None = None
        self.lane = lane or lane_for(self._flat[PARAM].device)
        """How values come and go."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._flat[PARAM].device

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Those of the slots."""
        return [vector.dtype for vector in self._vectors]

    @property
    def vector(self) -> torch.Tensor:
        """All parameters, flat; not to be changed."""
        return self._flat[PARAM]

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """The trainable ones, in the layout's order; not to be changed."""
        return self._parameters

    @property
    def outside(self) -> int:
        """How many parameters the optimizer has that are not the model's."""
        own = {id(parameter) for parameter in self._model.parameters()}
        groups = self._optimizer.param_groups
        return sum(id(p) not in own for group in groups for p in group["params"])

    @property
    def unknown_buffers(self) -> list[str]:
        """Names of buffers that a mean is taken of for want of a better rule."""
        return [kept.buffer.name for kept in self._kept if not kept.known]

    def staging(self) -> Staging:
        """Host memory for the values of all slots in one direction."""
        return self.lane.staging(self.dtypes)

    def look(self) -> None:
        """See what training has done: what has other memory now is taken in again.

        Once a round, before anything is read or written. Raises UsageError if the model's
        parameters are no longer the ones that were attached.
        """
        self._memory.look()
        if _count(self._optimizer) != self._optimized:
            raise UsageError(
                f"the optimizer has {_count(self._optimizer)} parameters, {self._optimized} when "
                "the model joined; expected the same ones to the end: add them before joining"
            )
        if len(self._flat) > 1:
            self._check_state()
            self._adopt_state()

    def gather(self, places: Places, out: Vectors) -> Mark:
        """Copy the values of slot k at `places` into `out[k]`, which holds them from the mark on.

        `out[k]` is host memory from `staging`, as long as `places`. State that does not exist yet
        reads as zeros. After `look`.
        """
        return self.lane.gather(self._vectors, places, out)

    def pick(self, places: Places) -> tuple[Vectors, Mark]:
        """As `gather`, into new vectors where the model is."""
        return self.lane.pick(self._vectors, places)

    def keep(self, places: Places) -> Vectors:
        """A copy of the values at `places`, for `add`."""
        return self.lane.keep(self._vectors, places)

    def scatter(self, places: Places, values: Vectors) -> None:
        """Assign `values[k]` to slot k at `places`; state that did not exist is created."""
        self.lane.assign(self._vectors, places, values)
        self._wrote(places)

    def add(self, places: Places, values: Vectors, own: Vectors) -> None:
        """Add `values[k] - own[k]` to slot k at `places`; state that did not exist is created."""
        self.lane.add(self._vectors, places, values, own)
        self._wrote(places)

    def pull(self, places: Places, values: Vectors, weight: float) -> None:
        """Move slot k at `places` towards `values[k]`: all the way if `weight` is 1."""
        if weight == 1:
            self.lane.assign(self._vectors, places, values)
        else:
            self.lane.pull(self._vectors, places, values, weight)
        self._wrote(places)

    def sample_lr(self) -> None:
        """Look at the learning rate of now. To be called at every step."""
        group = self._optimizer.param_groups[0]
        now, first = (_number(group.get(name)) for name in ("lr", "initial_lr"))
        self.highest_lr = max(self.highest_lr, now, first)
        self.lr_share = now / self.highest_lr if self.highest_lr else 1.0

    def keep_track(self) -> None:
        """From now on note what is written, for `take_written`."""
        self._written = []

    def take_written(self) -> npt.NDArray[np.int64]:
        """All indices that were written since last time, each once, in order."""
        assert self._written is not None
        written, self._written = self._written, []
        return np.unique(np.concatenate(written)) if written else np.empty(0, dtype=np.int64)

    def values(self, *, frozen: bool = True) -> State:
        """The member's model: by name, one-dimensional contiguous CPU tensors.

        Parameters in memory order, views into the flat vector (copies where it is not on the CPU),
        then buffers and, unless not `frozen` ones, frozen parameters.
        """
        flat = self._flat[PARAM].detach().cpu()
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
        """More bytes than any state of such a member has: SLOTS slots, and plain values."""
        buffers = sum(kept.tensor.nbytes for kept in self._persistent())
        return (1 + SLOTS) * self._flat[PARAM].nbytes + buffers + PLAIN_BYTES

    @torch.no_grad()
    def load_values(self, state: State) -> None:
        """Overwrite the model with what `values` of an equal model returned, or a part of it.

        Raises ValueError or KeyError, nothing being overwritten, if it was not equal.
        """
        targets = self._targets()
        for name, value in state.items():
            target = targets[name]
            if value.dtype != target.dtype or value.shape != (target.numel(),):
                raise ValueError(f"{name} is not as long, or not of the same dtype")
        numbers = []
        flat = self._flat[PARAM]
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
        """The `values` of a model like this one whose state dict is `given`: new tensors.

        Names are those of the model as it was given, compiled or not, or of the plain one. Raises
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
                flat = torch.empty(entry.size, dtype=self._flat[PARAM].dtype)
                flat.as_strided(entry.shape, entry.stride).copy_(value.detach())
                state[name] = flat
        return {name: state[name] for name in self._targets()}

    def is_finite(self) -> bool:
        """Whether every parameter that trains is a number."""
        return bool(self._flat[PARAM].isfinite().all())

    def optimizer_state(self) -> tuple[list[torch.Tensor], Plain]:
        """The optimizer's state, as `optimizers.state_of`. Raises TypeError."""
        return state_of(self._optimizer, self._parameters)

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], plain: Plain) -> None:
        """Make the optimizer's state what `optimizer_state` of an equal member returned.

        Raises one of `optimizers.NATURAL` if it was not equal.
        """
        give_state(self._optimizer, self._parameters, tensors, plain)
        if len(self.layout.slots) > 1:
            self._missing = set(self._stateful)
            for slot in self.layout.slots[1:]:
                self._flat[slot.name].zero_()
            self._adopt_state()

    def state_dict(self, state: State, *, trainable_only: bool = False) -> dict[str, Any]:
        """The state dict of the model that `state` describes: fresh contiguous CPU tensors.

        Names are those of the model as it was given, compiled or not. What the model's own has
        besides tensors (extra state) is this member's. With `trainable_only` it has the trainable
        parameters alone.
        """
        if trainable_only:
            trained = {entry.name for entry in self.layout.entries}
            state = {name: value for name, value in state.items() if name in trained}
        return self._dict.filled(self._shaped(state), trainable_only=trainable_only)

    def recompute_buffers(self, state: State) -> list[str]:
        """Recompute in `state`, in place, what follows from its parameters; what could not be."""
        return recompute(self._model, self._shaped(state))

    def _shaped(self, state: State) -> State:
        """The tensors of `state`, memory shared, in the model's shapes."""
        entries = {entry.name: entry for entry in self.layout.entries}
        return {
            name: value.as_strided(entries[name].shape, entries[name].stride)
            if name in entries
            else value.view(self._now(name).shape)
            for name, value in state.items()
        }

    def release(self) -> None:
        """Leave the model and the optimizer as their own: nothing shares memory any more."""
        self._memory.release()
        for slot in self.layout.slots[1:]:
            for parameter in self._parameters:
                state = self._optimizer.state.get(parameter, {})
                if isinstance(state.get(slot.name), torch.Tensor):
                    own = state[slot.name]
                    state[slot.name] = torch.empty_like(own).copy_(own)

    def _persistent(self) -> list[Kept]:
        return [kept for kept in self._kept if kept.buffer.rule != OWN]

    def _targets(self) -> State:
        """The tensors of which `values` are, by name."""
        named = dict(zip((e.name for e in self.layout.entries), self._parameters, strict=True))
        return named | {k.buffer.name: self._now(k.buffer.name) for k in self._persistent()}

    def _now(self, name: str) -> torch.Tensor:
        """The buffer of that name as the model has it now. Raises UsageError if it has none."""
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
        """Raise UsageError for what the average would get wrong: by name.

        A tensor that was added since joining, a buffer that has another shape or dtype, or one that
        two modules had and have no longer.
        """
        self._dict.check()
        known = set(map(id, self._targets().values()))
        names = {kept.buffer.name for kept in self._kept}
        for name, tensor in named_tensors(self._model):
            if id(tensor) in known or name in names:
                continue
            raise UsageError(
                f"{name} was added to the model after it joined, and would be neither exchanged"
                " nor averaged; add it before joining (run a batch through the model first), or "
                "register it with persistent=False"
            )
        for kept in self._persistent():
            buffer, now = kept.buffer, self._now(kept.buffer.name)
            kind = str(now.dtype).removeprefix("torch.")
            if (tuple(now.shape), kind) != (buffer.shape, buffer.dtype):
                raise UsageError(
                    f"buffer {buffer.name} is {list(now.shape)} {kind} now, it was "
                    f"{list(buffer.shape)} {buffer.dtype} when this member joined; buffers that "
                    "grow or change cannot be averaged: register it with persistent=False"
                )

    def _check_state(self) -> None:
        """Notice state that was given other memory, as optimizer.load_state_dict does."""
        try:
            if (
                list(map(id, self._optimizer.state.values())) == self._states
                and [state[name].data_ptr() for state, name in self._watched] == self._pointers
            ):
                return
        except (KeyError, AttributeError):  # some of it is gone
            pass
        for number in self._stateful - self._missing:
            state = self._optimizer.state.get(self._parameters[number])
            for slot in self.layout.slots[1:]:
                there = self._flat[slot.name].data_ptr()
                there += self.layout.entries[number].offset * slot.item_bytes
                if state is None or _pointer_of(state.get(slot.name)) != there:
                    self._missing.add(number)
        self._watch_state()

    def _watch_state(self) -> None:
        """Remember where the state is that is in the vector."""
        self._states = list(map(id, self._optimizer.state.values()))
        self._watched = [
            (self._optimizer.state[self._parameters[number]], slot.name)
            for number in sorted(self._stateful - self._missing)
            for slot in self.layout.slots[1:]
            if self._optimizer.state.get(self._parameters[number], {}).get(slot.name) is not None
        ]
        self._pointers = [state[name].data_ptr() for state, name in self._watched]

    def _adopt_state(self) -> None:
        """Have state that the optimizer has made since last time in the vector, values kept."""
        adopted = False
        for number in tuple(self._missing):
            parameter, entry = self._parameters[number], self.layout.entries[number]
            state = self._optimizer.state.get(parameter)
            if not state or any(state.get(s.name) is None for s in self.layout.slots[1:]):
                continue
            for slot in self.layout.slots[1:]:
                if state[slot.name].shape != parameter.shape:
                    raise UsageError(
                        f"{slot.name} of {entry.name} is {list(state[slot.name].shape)}; expected "
                        f"{list(parameter.shape)}: --method wash shuffles parameters alone"
                    )
                view_of(self._flat[slot.name], entry).copy_(state[slot.name])
                state[slot.name] = own_storage(self._flat[slot.name], entry)
            self._missing.remove(number)
            adopted = True
        if adopted:
            self._watch_state()

    def _wrote(self, places: Places) -> None:
        """Have model and optimizer find what `places` have just been given."""
        if self._written is not None:
            self._written.append(places.host)
        if (self._missing or self._memory.copies) and len(places):
            hit = np.unique(np.searchsorted(self._ends, places.host, side="right")).tolist()
            self._memory.wrote(hit)
            before = len(self._missing)
            for number in self._missing.intersection(hit):
                self._create_state_of(number)
            if len(self._missing) < before:
                self._watch_state()

    def _create_state_of(self, number: int) -> None:
        """Of an optimizer whose state is known; others make it themselves, at their first step."""
        if not isinstance(self._optimizer, KNOWN):
            return
        parameter, entry = self._parameters[number], self.layout.entries[number]
        state = self._optimizer.state[parameter]
        if not isinstance(self._optimizer, torch.optim.SGD):  # Adam counts its steps
            group = self._optimizer.param_groups[0]
            beside = parameter.device if group["fused"] or group["capturable"] else "cpu"
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=beside))
        for slot in self.layout.slots[1:]:
            state[slot.name] = own_storage(self._flat[slot.name], entry)
        self._missing.remove(number)


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _number(value: Any) -> float:
    """A learning rate, which may be a tensor, or None."""
    return 0.0 if value is None else float(value)


def _pointer_of(tensor: torch.Tensor | None) -> int:
    return -1 if tensor is None else tensor.data_ptr()
