"""The store: the only place that touches a member's model and optimizer.

At attach every trainable parameter becomes a view into one flat vector, in the layout's order, so
that a round is one gather and one scatter whatever the number of parameters. Values, dtypes,
strides and the identity of the `Parameter` objects stay as they were; nothing is copied twice.
Optimizer state follows when it first exists. No sockets, no plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from washp2p.errors import UsageError
from washp2p.lanes import Staging, lane_for
from washp2p.layout import Layout, Slot
from washp2p.parameters import in_flat_order, plain_model, refuse_what_cannot_be_shuffled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from washp2p.lanes import Lane, Mark, Places, Vectors
    from washp2p.layout import Entry

PARAM = "param"
SLOTS = 8
"""State tensors of a parameter's size that an optimizer may have."""
PLAIN_BYTES = 16 << 20
KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


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
    come and go (default: what the parameters' device calls for).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        slots: Sequence[str] = (),
        lane: Lane | None = None,
    ) -> None:
        """Flatten `model` in place. Raises UsageError for a model that cannot be exchanged."""
        self._model, self._prefix = plain_model(model)
        self._optimizer = optimizer
        self._highest_lr = float(optimizer.param_groups[0].get("lr", 0.0))
        refuse_what_cannot_be_shuffled(self._model, optimizer)
        self._parameters, entries, dtype = in_flat_order(self._model)
        self.layout = Layout(
            tuple(entries),
            (Slot(name=PARAM, dtype=dtype), *(Slot(name=s, dtype=dtype) for s in slots)),
        )
        self._flat = {PARAM: self._flatten_parameters()}
        self._ends = np.array([e.offset + e.size for e in entries])
        self._optimized = _count(optimizer)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._stateful = {k for k, p in enumerate(self._parameters) if id(p) in owned}
        self._missing = set(self._stateful) if slots else set()
        for slot in self.layout.slots[1:]:
            self._flat[slot.name] = torch.zeros_like(self._flat[PARAM])
        self._vectors = list(self._flat.values())
        self._written: list[npt.NDArray[np.int64]] | None = None
        self.lane = lane or lane_for(self._flat[PARAM].device)
        """How values come and go."""
        last = entries[-1]
        self._last_views = {name: _view(flat, last).data_ptr() for name, flat in self._flat.items()}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._flat[PARAM].device

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Those of the slots."""
        return [vector.dtype for vector in self._vectors]

    def staging(self) -> Staging:
        """Host memory for the values of all slots in one direction."""
        return self.lane.staging(self.dtypes)

    def look(self) -> None:
        """See what the optimizer has done: its state is as new. `gather` and `pick` do it.

        Raises UsageError if the model's parameters are no longer the ones that were attached.
        """
        self._check_views()
        self._adopt_state()

    def gather(self, places: Places, out: Vectors) -> Mark:
        """Copy the values of slot k at `places` into `out[k]`, which holds them from the mark on.

        `out[k]` is host memory from `staging`, as long as `places`. State that does not exist yet
        reads as zeros. Raises UsageError if the model's parameters are no longer the ones that
        were attached.
        """
        self.look()
        return self.lane.gather(self._vectors, places, out)

    def pick(self, places: Places) -> tuple[Vectors, Mark]:
        """As `gather`, into new vectors where the model is."""
        self.look()
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

    @property
    def lr(self) -> float:
        """The optimizer's learning rate of now, as a share of the highest that was seen here.

        That of its first parameter group, counting what a scheduler calls its `initial_lr`: at most
        1, while it is warmed up, too.
        """
        group = self._optimizer.param_groups[0]
        now = float(group["lr"])
        self._highest_lr = max(self._highest_lr, now, float(group.get("initial_lr", 0.0)))
        return now / self._highest_lr if self._highest_lr else 1.0

    def keep_track(self) -> None:
        """From now on note what is written, for `take_written`."""
        self._written = []

    def take_written(self) -> npt.NDArray[np.int64]:
        """All indices that were written since last time, each once, in order."""
        assert self._written is not None
        written, self._written = self._written, []
        return np.unique(np.concatenate(written)) if written else np.empty(0, dtype=np.int64)

    def sections(self) -> dict[str, torch.Tensor]:
        """Everything that is a member's model, as one-dimensional contiguous CPU tensors.

        `param` is the flat vector itself, padding included (a copy where it is not on the CPU);
        `buffer:<dtype>` holds, concatenated in state-dict order, what the state dict has besides
        the trainable parameters: buffers and frozen parameters.
        """
        sections = {PARAM: self._flat[PARAM].detach().cpu()}
        for dtype, tensors in self._buffers().items():
            joined = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])
            sections[f"buffer:{dtype}"] = joined
        return sections

    @property
    def largest_snapshot(self) -> int:
        """More bytes than any state of such a member has: SLOTS slots, and plain values."""
        buffers = sum(tensor.nbytes for group in self._buffers().values() for tensor in group)
        return (1 + SLOTS) * self._flat[PARAM].nbytes + buffers + PLAIN_BYTES

    @torch.no_grad()
    def load_sections(self, sections: dict[str, torch.Tensor]) -> None:
        """Overwrite the model with what `sections` of an equal model returned.

        Raises ValueError or KeyError, nothing being overwritten, if it was not equal.
        """
        flat = self._flat[PARAM]
        expected = {PARAM: (flat.dtype, flat.numel())}
        for dtype, tensors in self._buffers().items():
            total = sum(tensor.numel() for tensor in tensors)
            expected[f"buffer:{dtype}"] = tensors[0].dtype, total
        for name, (kind, size) in expected.items():
            if sections[name].dtype != kind or sections[name].shape != (size,):
                raise ValueError(f"section {name} is not as long, or not of the same dtype")
        if sections[PARAM].data_ptr() != flat.data_ptr():
            flat.copy_(sections[PARAM])
        for dtype, tensors in self._buffers().items():
            parts = sections[f"buffer:{dtype}"].split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def sections_of(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The `sections` of a model like this one whose state dict is `state`: new tensors.

        Names are those of the model as it was given, compiled or not, or of the plain one. Raises
        UsageError if it is no state dict of such a model.
        """
        flat = torch.zeros(self.layout.size, dtype=self._flat[PARAM].dtype)
        places = {id(p): e for p, e in zip(self._parameters, self.layout.entries, strict=True)}
        rest: dict[str, list[torch.Tensor]] = {}
        seen = set()
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            value = state.get(self._prefix + name, state.get(name))
            if value is None or value.shape != tensor.shape:
                got = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise UsageError(
                    f"what is to be averaged has {got} under {name}; expected shape "
                    f"{tuple(tensor.shape)}: a state dict of a model like the one that trained"
                )
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            entry = places.get(id(tensor))
            if entry is not None:
                _view(flat, entry).copy_(value.detach())
            else:
                own = value.detach().to("cpu", tensor.dtype).reshape(-1)
                rest.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(own)
        joined = {f"buffer:{dtype}": torch.cat(parts) for dtype, parts in rest.items()}
        return {PARAM: flat, **joined}

    def is_finite(self) -> bool:
        """Whether every value of the model is a number."""
        return all_finite(self.sections())

    def optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The optimizer's state: copies of its tensors on the CPU, and the rest as plain values.

        Tensors are named `<number of the parameter in the layout>.<name>`; the plain values are
        other state by the same names, and each parameter group's numbers.
        """
        tensors, plain = {}, {}
        for number, parameter in enumerate(self._parameters):
            for name, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    copy = value.detach().to("cpu", copy=True)
                    tensors[f"{number}.{name}"] = copy.contiguous()
                elif isinstance(value, (int, float, bool)):
                    plain[f"{number}.{name}"] = value
        groups = [
            {
                name: value
                for name, value in group.items()
                if isinstance(value, (int, float, bool))
                or (isinstance(value, tuple) and all(isinstance(v, float) for v in value))
            }
            for group in self._optimizer.param_groups
        ]
        return tensors, {"state": plain, "groups": groups}

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
        """Make the optimizer's state what `optimizer_state` of an equal member returned.

        Raises ValueError, KeyError, IndexError, TypeError or RuntimeError if it was not equal.
        """
        self._optimizer.state.clear()
        for key, value in (*tensors.items(), *plain["state"].items()):
            number, _, name = key.partition(".")
            parameter = self._parameters[int(number)]
            own = _as_state_of(parameter, value) if isinstance(value, torch.Tensor) else value
            self._optimizer.state[parameter][name] = own
        for group, values in zip(self._optimizer.param_groups, plain["groups"], strict=True):
            for name, value in values.items():
                own = tuple(map(float, value)) if isinstance(value, list) else value
                if name == "params" or not isinstance(own, (int, float, bool, tuple)):
                    raise TypeError(f"{name} of a parameter group is {value!r:.40}")
                group[name] = own
        if len(self.layout.slots) > 1:
            self._missing = set(self._stateful)
            for slot in self.layout.slots[1:]:
                self._flat[slot.name].zero_()
            self._adopt_state()

    def state_dict(self, sections: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict of the model that `sections` describes: fresh contiguous CPU tensors.

        Names are those of the model as it was given, compiled or not.
        """
        state = {}
        flat = sections[PARAM]
        places = {id(p): e for p, e in zip(self._parameters, self.layout.entries, strict=True)}
        rest = {
            id(tensor): part.view(tensor.shape)
            for dtype, tensors in self._buffers().items()
            for tensor, part in zip(
                tensors,
                sections[f"buffer:{dtype}"].split([tensor.numel() for tensor in tensors]),
                strict=True,
            )
        }
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            entry = places.get(id(tensor))
            value = rest[id(tensor)] if entry is None else _view(flat, entry)
            state[self._prefix + name] = value.clone(memory_format=torch.contiguous_format)
        return state

    def _flatten_parameters(self) -> torch.Tensor:
        first = self._parameters[0]
        flat = torch.empty(self.layout.size, dtype=first.dtype, device=first.device)
        end = 0
        for parameter, entry in zip(self._parameters, self.layout.entries, strict=True):
            flat[end : entry.offset].zero_()
            end = entry.offset + entry.size
            view = _view(flat, entry)
            view.copy_(parameter.detach())
            parameter.data = view  # and the memory it had is free: never two models at once
        flat[end:].zero_()
        return flat

    def _buffers(self) -> dict[str, list[torch.Tensor]]:
        """State-dict tensors that are not trainable parameters, once each, by dtype."""
        own = {id(parameter) for parameter in self._parameters}
        groups: dict[str, list[torch.Tensor]] = {}
        for tensor in self._model.state_dict(keep_vars=True).values():
            if id(tensor) not in own:
                own.add(id(tensor))
                groups.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(tensor)
        return groups

    def _check_views(self) -> None:
        """Notice whoever moved or replaced what was attached: one look at one parameter."""
        parameter = self._parameters[-1]
        if parameter.data_ptr() != self._last_views[PARAM]:
            raise UsageError(
                "the model's parameters were moved or converted after joining; do .to(), .half() "
                "and the like before"
            )
        if _count(self._optimizer) != self._optimized:
            raise UsageError(
                f"the optimizer has {_count(self._optimizer)} parameters, {self._optimized} when "
                "the model joined; expected the same ones to the end: add them before joining"
            )
        for slot in self.layout.slots[1:]:
            state = self._optimizer.state.get(parameter, {}).get(slot.name)
            if state is not None and state.data_ptr() != self._last_views[slot.name]:
                self._missing = set(self._stateful)  # optimizer.load_state_dict made new tensors

    def _adopt_state(self) -> None:
        """Turn state that the optimizer has made since last time into views, values kept."""
        for number in tuple(self._missing):
            parameter, entry = self._parameters[number], self.layout.entries[number]
            state = self._optimizer.state.get(parameter)
            if not state or any(state.get(s.name) is None for s in self.layout.slots[1:]):
                continue
            for slot in self.layout.slots[1:]:
                view = _view(self._flat[slot.name], entry)
                view.copy_(state[slot.name])
                state[slot.name] = view
            self._missing.remove(number)

    def _wrote(self, places: Places) -> None:
        """Have the optimizer find the state that `places` have just been given."""
        if self._written is not None:
            self._written.append(places.host)
        if self._missing and len(places):
            hit = np.unique(np.searchsorted(self._ends, places.host, side="right")).tolist()
            for number in self._missing.intersection(hit):
                self._create_state_of(number)

    def _create_state_of(self, number: int) -> None:
        """Of an optimizer whose state is known; others make it themselves, at their first step."""
        if not isinstance(self._optimizer, KNOWN):
            return
        parameter, entry = self._parameters[number], self.layout.entries[number]
        state = self._optimizer.state[parameter]
        if not isinstance(self._optimizer, torch.optim.SGD):  # Adam counts its steps
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
        for slot in self.layout.slots[1:]:
            state[slot.name] = _view(self._flat[slot.name], entry)
        self._missing.remove(number)


def all_finite(sections: dict[str, torch.Tensor]) -> bool:
    """Whether every value in there is a number."""
    return all(bool(v.isfinite().all()) for v in sections.values() if v.is_floating_point())


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _as_state_of(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """A copy laid out like the parameter, or as it is; counters stay on the CPU, as Adam's do."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter).copy_(value)
    if value.numel() != 1:
        raise ValueError(f"state of a parameter {tuple(parameter.shape)} is {tuple(value.shape)}")
    return value.to(parameter.device if value.dim() else torch.device("cpu"), copy=True)


def _view(flat: torch.Tensor, entry: Entry) -> torch.Tensor:
    return flat.as_strided(entry.shape, entry.stride, flat.storage_offset() + entry.offset)
