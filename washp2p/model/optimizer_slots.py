"""Optimizer state that members exchange beside the parameters. It lies in flat vectors, too.

An optimizer makes its state when it first steps. From then on each state tensor lies in its slot's
vector. Calls such as `load_state_dict` give the state other memory; the next `refresh` moves it
back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from washp2p.errors import UsageError
from washp2p.model.flat_memory import flat_zeros, own_storage, view_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from washp2p.protocol.layout import Entry, Slot

KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def optimizer_slots(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The names of the state that WASH+Opt shuffles: all tensors shaped like their parameter.

    SGD has `momentum_buffer` (none without momentum). Adam and AdamW have `exp_avg`, `exp_avg_sq`,
    and `max_exp_avg_sq` under AMSGrad. To find the names, a small optimizer of the same kind takes
    a step. Raises UsageError if that fails.
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


class OptimizerSlots:
    """Holds the `slots` of `optimizer`'s state, each in a flat vector in the parameters' order.

    `entries[k]` describes `parameters[k]`. Each vector has the length and dtype of `like`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.nn.Parameter],
        entries: Sequence[Entry],
        slots: Sequence[Slot],
        like: torch.Tensor,
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._entries = entries
        self._slots = slots
        self.vectors = [flat_zeros(len(like), like.dtype, like.device) for _ in slots]
        """One flat vector for each slot, in the order of `slots`."""
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._stateful = {k for k, p in enumerate(parameters) if id(p) in owned and p.numel()}
        self._missing = set(self._stateful) if slots else set()
        self._states: list[int] = []
        self._watched: list[tuple[dict[str, Any], str]] = []
        self._pointers: list[int] = []

    def __bool__(self) -> bool:
        """Whether any state is exchanged."""
        return bool(self._slots)

    @property
    def incomplete(self) -> bool:
        """Whether some state does not exist yet."""
        return bool(self._missing)

    def refresh(self) -> None:
        """Move all state that exists into the vectors, with its values. Call it once per round."""
        if self._slots:
            self._check()
            self._adopt()

    def forget(self) -> None:
        """After the whole state was replaced, clear the vectors and move the new state in."""
        if self._slots:
            self._missing = set(self._stateful)
            for vector in self.vectors:
                vector.zero_()
            self._adopt()

    def create(self, numbers: Iterable[int]) -> None:
        """Create the missing state of the parameters with the indices `numbers`.

        This is done for SGD, Adam and AdamW. Other optimizers create their state at their first
        step.
        """
        before = len(self._missing)
        for number in self._missing.intersection(numbers):
            self._create(number)
        if len(self._missing) < before:
            self._watch()

    def release(self) -> None:
        """Give the optimizer's state memory of its own again."""
        for slot in self._slots:
            for parameter in self._parameters:
                state = self._optimizer.state.get(parameter, {})
                if isinstance(state.get(slot.name), torch.Tensor):
                    own = state[slot.name]
                    state[slot.name] = torch.empty_like(own).copy_(own)

    def _check(self) -> None:
        """Mark state as missing if it lies in other memory now, as after `load_state_dict`."""
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
            for slot, vector in zip(self._slots, self.vectors, strict=True):
                there = vector.data_ptr() + self._entries[number].offset * slot.item_bytes
                if state is None or _pointer_of(state.get(slot.name)) != there:
                    self._missing.add(number)
        self._watch()

    def _watch(self) -> None:
        """Remember where the state in the vectors lies."""
        self._states = list(map(id, self._optimizer.state.values()))
        self._watched = [
            (self._optimizer.state[self._parameters[number]], slot.name)
            for number in sorted(self._stateful - self._missing)
            for slot in self._slots
            if self._optimizer.state.get(self._parameters[number], {}).get(slot.name) is not None
        ]
        self._pointers = [state[name].data_ptr() for state, name in self._watched]

    def _adopt(self) -> None:
        """Move state that the optimizer has made since the last call into the vectors."""
        adopted = False
        for number in tuple(self._missing):
            parameter, entry = self._parameters[number], self._entries[number]
            state = self._optimizer.state.get(parameter)
            if not state or any(state.get(slot.name) is None for slot in self._slots):
                continue
            for slot, vector in zip(self._slots, self.vectors, strict=True):
                shape = getattr(state[slot.name], "shape", ())
                if shape != parameter.shape:
                    raise UsageError(
                        f"{slot.name} of {entry.name} is {list(shape)}; expected "
                        f"{list(parameter.shape)}: --method wash shuffles parameters alone"
                    )
                view_of(vector, entry).copy_(state[slot.name])
                state[slot.name] = own_storage(vector, entry)
            self._missing.remove(number)
            adopted = True
        if adopted:
            self._watch()

    def _create(self, number: int) -> None:
        if not isinstance(self._optimizer, KNOWN):
            return
        parameter, entry = self._parameters[number], self._entries[number]
        state = self._optimizer.state[parameter]
        if not isinstance(self._optimizer, torch.optim.SGD):  # Adam counts its steps
            group = self._optimizer.param_groups[0]
            beside = parameter.device if group["fused"] or group["capturable"] else "cpu"
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=beside))
        for slot, vector in zip(self._slots, self.vectors, strict=True):
            state[slot.name] = own_storage(vector, entry)
        self._missing.remove(number)


def _pointer_of(tensor: torch.Tensor | None) -> int:
    return -1 if tensor is None else tensor.data_ptr()
