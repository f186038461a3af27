"""Permutation alignment by matching features (Ainsworth et al. 2023; PAPA, A.4). No files.

The hidden units of a network may be permuted without changing what it computes. Aligning permutes
one network's units so that its features are most like another's. The network is traced to find the
units that have to be permuted together, such as those that a residual connection adds.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from operator import add, iadd
from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import fx, nn
from torch.nn import functional

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    State = dict[str, torch.Tensor]

LAYERS = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POINTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Identity, nn.Dropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
"""Modules that treat each channel by itself."""
FUNCTIONS = {torch.relu, functional.relu, functional.max_pool2d, functional.avg_pool2d}
EPSILON = 1e-12


@dataclass
class Space:
    """Units that are permuted together, and the tensors that have them as a dimension.

    The units are dimension 0 of each tensor in `out`. They are dimension 1 of each weight in
    `into`, where a unit has one or more consecutive columns. `nodes` names the places in the traced
    network where the units appear.
    """

    out: list[str] = field(default_factory=list)
    into: list[tuple[str, int]] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    free: bool = True
    """Whether the units may be permuted. The network's inputs and outputs may not."""


def spaces_of(model: nn.Module) -> tuple[fx.GraphModule, list[Space]]:
    """The traced `model` and its spaces that may be permuted.

    Raises UsageError if some part of the model is not understood.
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever tracing makes of somebody's forward
        raise UsageError(
            f"cannot align: the model cannot be traced ({error!r:.200}); expected one of the CNN, "
            "VGG and ResNet families"
        ) from None
    return traced, _Tracer(traced).spaces()


class _Tracer:
    """Follows channels through a graph. Union-find joins those that must be permuted alike."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self._modules = dict(traced.named_modules())
        self._graph = traced.graph
        self._spaces: list[Space] = []
        self._parent: list[int] = []
        self._of: dict[fx.Node, int] = {}
        self._columns: dict[fx.Node, bool] = {}

    def spaces(self) -> list[Space]:
        for node in self._graph.nodes:
            self._visit(node)
        joined: dict[int, Space] = {}
        for number, space in enumerate(self._spaces):
            whole = joined.setdefault(self._find(number), Space())
            whole.out += space.out
            whole.into += space.into
            whole.nodes += space.nodes
            whole.free &= space.free
        return [space for space in joined.values() if space.free and space.out]

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._of[node] = self._new(free=False)
        elif node.op == "output":
            (value,) = node.args
            assert isinstance(value, fx.Node)
            self._spaces[self._find(self._of[value])].free = False
        elif node.op == "call_module":
            self._module(node, self._modules[str(node.target)])
        elif node.op == "call_function" and node.target in {add, iadd, torch.add}:
            first, second = (self._of[value] for value in node.args[:2])  # type: ignore[index]
            self._of[node] = self._join(first, second)
        elif (node.op == "call_function" and node.target in {*FUNCTIONS, torch.flatten}) or (
            node.op == "call_method" and node.target in {"relu", "flatten"}
        ):
            self._of[node] = self._of[node.args[0]]  # type: ignore[index]
        else:
            raise _unknown(f"{node.op} {node.target}")
        if node in self._of:
            self._spaces[self._find(self._of[node])].nodes.append(node.name)

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        came = self._of[node.args[0]]  # type: ignore[index]
        name = str(node.target)
        if isinstance(module, LAYERS):
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                raise _unknown("a grouped convolution")
            self._spaces[came].into.append((f"{name}.weight", 1))
            self._of[node] = self._new()
            self._name(self._of[node], name, module)
        elif isinstance(module, NORMS):
            self._name(came, name, module)
            self._of[node] = came
        elif isinstance(module, POINTWISE) or type(module) is nn.Flatten:
            self._of[node] = came
        else:
            raise _unknown(type(module).__name__)

    def _name(self, number: int, name: str, module: nn.Module) -> None:
        """Add a module's tensors to the space `number`, whose units are their dimension 0.

        Scalars are left out. `name` is the module's name.
        """
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._spaces[number].out += [f"{name}.{key}" for key, t in tensors.items() if t.dim()]

    def _new(self, *, free: bool = True) -> int:
        self._spaces.append(Space(free=free))
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def _find(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def _join(self, first: int, second: int) -> int:
        self._parent[self._find(second)] = self._find(first)
        return first


def _unknown(what: str) -> UsageError:
    return UsageError(
        f"cannot align: it is not known how {what} treats units; expected a model of the CNN, VGG "
        "and ResNet families"
    )


def permute(state: State, space: Space, order: torch.Tensor) -> State:
    """`state` with the units of `space` in another `order` (int64).

    The network computes the same function as before.
    """
    changed = dict(state)
    for name in space.out:
        changed[name] = changed[name][order]
    for name, _ in space.into:
        weight = changed[name]
        each = weight.shape[1] // len(order)
        columns = (order[:, None] * each + torch.arange(each)).flatten()
        changed[name] = weight[:, columns]
    return changed


@torch.no_grad()
def align(
    model: nn.Module, state: State, reference: State, batches: Iterable[torch.Tensor]
) -> State:
    """`state` with its hidden units permuted to match those of `reference`: CPU tensors.

    The aligned network computes the same function as before. `model` has the architecture of both,
    and is not changed. Features are compared on the inputs in `batches`, which are on the device of
    `model`. In each space, units are matched by the assignment with the largest sum of correlations
    over the places where they appear. Raises UsageError if the architecture is not understood.
    """
    first, second = deepcopy(model), deepcopy(model)
    first.load_state_dict(reference)
    second.load_state_dict(state)
    traced, spaces = spaces_of(first.eval())
    other, _ = spaces_of(second.eval())
    wanted = {node for space in spaces for node in space.nodes}
    sums: defaultdict[str, _Correlation] = defaultdict(_Correlation)
    for inputs in batches:
        ours, theirs = (_features(each, inputs, wanted) for each in (traced, other))
        for node, features in ours.items():
            sums[node].add(features, theirs[node])
    changed = {name: tensor.cpu() for name, tensor in state.items()}
    for space in spaces:
        units = changed[space.out[0]].shape[0]
        likeness = sum(
            (_by_unit(sums[node].value(), units) for node in space.nodes),
            start=torch.zeros(units, units, dtype=torch.float64),
        )
        _, order = linear_sum_assignment(likeness.numpy(), maximize=True)
        changed = permute(changed, space, torch.from_numpy(order))
    return changed


class _Correlation:
    """The correlation of every unit of one network with every unit of another."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[torch.Tensor] = []

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """Add both networks' features (samples x units x ...) for the same inputs."""
        a, b = (x.double().transpose(0, 1).flatten(1).cpu() for x in (ours, theirs))
        new = [a.sum(1), b.sum(1), (a * a).sum(1), (b * b).sum(1), a @ b.T]
        self._sums = [x + y for x, y in zip(self._sums, new, strict=True)] if self._count else new
        self._count += a.shape[1]

    def value(self) -> torch.Tensor:
        """The correlations over all samples added: units x units, float64."""
        a, b, aa, bb, ab = (each / self._count for each in self._sums)
        spread = ((aa - a * a).clamp(min=0)[:, None] * (bb - b * b).clamp(min=0)[None]).sqrt()
        return (ab - a[:, None] * b[None]) / (spread + EPSILON)


def _by_unit(likeness: torch.Tensor, units: int) -> torch.Tensor:
    """The mean correlation over each unit's columns: units x units.

    A unit has several columns after flattening.
    """
    each = len(likeness) // units
    blocks = likeness.reshape(units, each, units, each)
    return blocks.diagonal(dim1=1, dim2=3).mean(-1)


def _features(traced: fx.GraphModule, inputs: torch.Tensor, wanted: set[str]) -> State:
    """The outputs of the `wanted` nodes for a batch of `inputs`, by node."""
    found: State = {}

    class Checkpointing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.name in wanted:
                found[n.name] = value
            return value

    Checkpointing(traced).run(inputs)
    return found
