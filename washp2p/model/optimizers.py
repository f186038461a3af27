"""A member's optimizer: unwrapping it, and saving and restoring its state.

The optimizer's own `state_dict` and `load_state_dict` read and set its state, whatever that
contains. When the model joins, this is tried with a twin: another optimizer of the same kind and
options, with a few small parameters.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBES = ((64, 96), (96,))
"""Shapes of a twin's parameters: large enough for state that is factored or quantised."""
FEW = 3
_PLAIN = (bool, int, float, str, type(None))
NATURAL = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    AssertionError,
    OverflowError,
    SafetensorError,
)
"""Exceptions that other people's code raises for arguments that it does not expect."""

Plain = Any
"""A value that JSON can express."""


def plain_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer whose steps change the parameters, without Accelerate's wrapper.

    Raises UsageError for anything else, and says what to pass.
    """
    inner = optimizer
    while type(inner).__name__ == "AcceleratedOptimizer" and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        has = getattr(inner, "optimizer", None)
        hint = ": pass its .optimizer" if isinstance(has, torch.optim.Optimizer) else ""
        raise UsageError(
            f"the optimizer is a {type(inner).__name__}; expected a torch.optim.Optimizer{hint}"
        )
    if "_optimizer_step_post_hooks" not in vars(inner):
        raise UsageError(
            f"{type(inner).__name__} has not called torch.optim.Optimizer.__init__ and so knows no "
            "hooks; pass the optimizer that it wraps"
        )
    return inner


def plain_scaler(scaler: object) -> torch.amp.GradScaler | None:
    """The GradScaler that `scaler` is, or that it holds if it is timm's NativeScaler.

    None stays None. Raises UsageError for anything else.
    """
    inner = getattr(scaler, "_scaler", None) if type(scaler).__name__ == "NativeScaler" else scaler
    if inner is None or isinstance(inner, torch.amp.GradScaler):
        return inner
    raise UsageError(
        f"scaler is a {type(scaler).__name__}; expected the torch.amp.GradScaler whose step steps "
        "the optimizer, timm's NativeScaler, or nothing"
    )


def take_apart(value: Any, tensors: list[torch.Tensor]) -> Plain:
    """Turn `value` into a plain value, and append the tensors in it to `tensors`.

    In the plain value, each tensor's index in `tensors` stands for the tensor. Raises TypeError if
    something is neither a tensor nor a plain value.
    """
    if isinstance(value, torch.Tensor):
        if type(value) not in {torch.Tensor, torch.nn.Parameter}:
            raise TypeError(f"a {type(value).__name__} cannot be written to a file")
        tensors.append(value.detach())
        return {"washp2p.tensor": len(tensors) - 1}
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"a dict with keys {list(value)!r:.60} cannot be written to a file")
        return {"items": [[key, take_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        items = [take_apart(item, tensors) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written to a file")


def put_together(value: Plain, tensors: dict[str, torch.Tensor]) -> Any:
    """Undo `take_apart`. The keys of `tensors` are the tensors' indices, as strings.

    Raises ValueError if `value` is not of the form that `take_apart` returns.
    """
    match value:
        case {"washp2p.tensor": int(number)} if str(number) in tensors:
            return tensors[str(number)]
        case {"tuple": list(items)}:
            return tuple(put_together(item, tensors) for item in items)
        case {"items": list(items)}:
            return dict(_entry(item, tensors) for item in items)
        case list(items):
            return [put_together(item, tensors) for item in items]
        case bool() | int() | float() | str() | None:
            return value
    raise ValueError(f"{value!r:.100} stands for no value")


def _entry(item: Plain, tensors: dict[str, torch.Tensor]) -> tuple[str | int, Any]:
    match item:
        case [str(key) | int(key), value]:
            return key, put_together(value, tensors)
    raise ValueError(f"{item!r:.100} is no entry of a dict")


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Plain]:
    """The optimizer's state: its tensors as they are, and the rest as plain values.

    A parameter's state is stored under the parameter's index in `parameters`, so parameter groups
    may be in any order. Raises TypeError if some state is neither tensor nor plain value.
    """
    tensors: list[torch.Tensor] = []
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    whole = optimizer.state_dict()
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        numbers.get(id(ordered[key]), -1 - key) if isinstance(key, int) else key: values
        for key, values in whole["state"].items()
    }
    groups = [
        {name: value for name, value in group.items() if name != "params" and _is_kept(value)}
        for group in whole["param_groups"]
    ]
    more = {k: v for k, v in whole.items() if k not in {"state", "param_groups"} and _is_kept(v)}
    plain = take_apart({"state": state, "groups": groups, "more": more}, tensors)
    return tensors, plain


def give_state(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    tensors: dict[str, torch.Tensor],
    plain: Plain,
) -> None:
    """Set the optimizer's state to what `state_of` returned for one of the same kind.

    `tensors` and `plain` are as in `put_together`. A state tensor with its parameter's shape gets
    the parameter's memory format. Raises ValueError if the state does not fit.
    """
    match put_together(plain, tensors):
        case {"state": dict(given), "groups": list(options), "more": dict(more)}:
            pass
        case _:
            raise ValueError("it is no optimizer's state")
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    places = {id(parameter): key for key, parameter in enumerate(ordered)}
    for key in given:
        if isinstance(key, int) and key >= 0:
            if key >= len(parameters):
                raise ValueError(f"it has state of parameter {key}, of {len(parameters)}")
            if id(parameters[key]) not in places:
                raise ValueError(f"it has state of parameter {key}, which the optimizer lacks")
    state = {
        (places[id(parameters[key])] if key >= 0 else -1 - key)
        if isinstance(key, int)
        else key: values
        for key, values in given.items()
    }
    own = optimizer.state_dict()
    if len(options) != len(own["param_groups"]) or not all(isinstance(g, dict) for g in options):
        raise ValueError(f"it has not {len(own['param_groups'])} parameter groups")
    groups = [{**mine, **theirs} for mine, theirs in zip(own["param_groups"], options, strict=True)]
    try:
        optimizer.load_state_dict({**own, **more, "state": state, "param_groups": groups})
    except NATURAL as error:  # the optimizer's own code
        raise ValueError(f"{type(optimizer).__name__} refuses the state: {error!r:.200}") from error
    for parameter, values in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(values, dict):
            continue
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def why_not_restorable(optimizer: torch.optim.Optimizer) -> str:
    """Why the state of such an optimizer cannot be saved and restored; "" if it can.

    To find out, a twin takes a step. Its state is saved to bytes and restored in a second twin. The
    string is empty, too, if no twin can be made.
    """
    try:
        twin, probes = _twin(optimizer)
    except NATURAL:
        return ""  # nobody can tell; what cannot be given back is said when it is asked for
    try:
        tensors, plain = state_of(twin, probes)
        data = save({str(k): t.cpu().contiguous() for k, t in enumerate(tensors)})
        other, others = _twin(optimizer, steps=0)
        give_state(other, others, load(data), json.loads(json.dumps(plain)))
        again, plainly = state_of(other, others)
        same = plainly == plain and len(again) == len(tensors)
        same = same and all(
            a.shape == b.shape and a.device == b.device and torch.equal(a, b)
            for a, b in zip(tensors, again, strict=True)
        )
    except NATURAL as error:
        return f"{error}"[:200] or type(error).__name__
    return "" if same else "it differs after having been given back"


def copies_in(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of state tensors that equal their parameters after a step, as master weights do.

    The list is empty for optimizers of torch.optim: they write no parameter from such state.
    """
    if type(optimizer).__module__.startswith("torch.optim"):
        return []
    return sorted(
        {
            str(name)
            for parameter, state in list(optimizer.state.items())[:FEW]
            if isinstance(parameter, torch.Tensor) and isinstance(state, dict)
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
            and value.shape == parameter.shape
            and torch.equal(value.detach().to(parameter.dtype), parameter.detach())
            and bool(parameter.detach().any())
        }
    )


def _twin(
    optimizer: torch.optim.Optimizer, steps: int = 1
) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """A twin of `optimizer` after `steps` steps, and the twin's own small parameters."""
    group = optimizer.param_groups[0]
    first = group["params"][0]
    probes = [
        torch.nn.Parameter(torch.ones(shape, dtype=first.dtype, device=first.device))
        for shape in PROBES
    ]
    like: Any = type(optimizer)
    options = {k: v for k, v in group.items() if k not in {"params", "initial_lr"}}
    known = {k: v for k, v in options.items() if k in optimizer.defaults}
    twin: torch.optim.Optimizer = like([{"params": probes, **copy.deepcopy(known)}])

    def closure() -> torch.Tensor:
        for probe in probes:
            probe.grad = torch.ones_like(probe)
        return probes[0].detach().sum()

    with torch.no_grad():
        closure()
    for _ in range(steps):
        twin.step(closure) if isinstance(twin, torch.optim.LBFGS) else twin.step()
    return twin, probes


def _is_kept(value: Any) -> bool:
    """Whether an option `value` of an optimizer can be saved. `give_state` keeps other options."""
    try:
        take_apart(value, [])
    except TypeError:
        return False
    return True


class LearningRate:
    """The learning rate of an optimizer's first parameter group, read once per step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.highest = 0.0
        """The highest learning rate at any step, or a scheduler's `initial_lr` if it is higher."""
        self.share = 1.0
        """The last step's learning rate divided by `highest`; 1 while `highest` is 0."""

    def sample(self) -> None:
        """Read the present learning rate. Call it once per step."""
        group = self._optimizer.param_groups[0]
        rates = (group.get(name) for name in ("lr", "initial_lr"))
        now, first = (0.0 if rate is None else float(rate) for rate in rates)
        self.highest = max(self.highest, now, first)
        self.share = now / self.highest if self.highest else 1.0


def parameters_outside(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The number of parameters of the optimizer that are not the model's."""
    own = {id(parameter) for parameter in model.parameters()}
    return sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
