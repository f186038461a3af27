"""The reference: Algorithm 1 on a dense members-by-parameters array, slow and plain.

It is the oracle that the peer-to-peer system is held against, so it shares no code with the plan,
the store or the exchange: everything here is written again from docs/protocol.md, with Python
integers, fractions and loops.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

TWO_64 = 2**64
TABLE_UP_TO = 7
ROUNDS = 24


def rate(schedule: str, p: float, layer: int, layers: int) -> Fraction:
    """p_l (equation 6 for `decreasing`)."""
    if schedule == "constant" or layers == 1:
        return Fraction(p)
    if schedule == "increasing":
        return Fraction(p) * layer / (layers - 1)
    return Fraction(p) * (1 - Fraction(layer, layers - 1))


def poisson_thresholds(mean: Decimal) -> list[int]:
    """floor(2**64 P(M <= m)) for m = 0, 1, ... until it is 2**64 to the last unit."""
    with localcontext(prec=80, Emin=MIN_EMIN, Emax=MAX_EMAX):
        term = (-mean).exp()
        total = term
        thresholds = [int(total * TWO_64)]
        while 1 - total > Decimal(2) ** -70 and (term or not total):
            term = term * mean / len(thresholds)
            total += term
            thresholds.append(min(int(total * TWO_64), TWO_64 - 1))
    return thresholds


def permutation(word: int, n: int) -> list[int]:
    """pi_i of the scalar that drew `word`."""
    if n <= TABLE_UP_TO:
        factorials = [1]
        for k in range(1, n + 1):
            factorials.append(factorials[-1] * k)
        number = (word >> 32) * factorials[n] >> 32
        left = list(range(n))
        return [left.pop(number // factorials[k] % (k + 1)) for k in range(n - 1, -1, -1)]
    image = []
    for start in range(n):
        x = start
        for r in range(1, ROUNDS + 1):
            mixed = splitmix((word + r * 0x9E3779B97F4A7C15) % TWO_64)
            y = ((mixed >> 32) * n // 2**32 - x) % n
            if splitmix(mixed ^ (max(x, y) + 1) * 0xD1B54A32D192ED03 % TWO_64) >= 2**63:
                x = y
        image.append(x)
    return image


def splitmix(z: int) -> int:
    """The finaliser of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % TWO_64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % TWO_64
    return z ^ z >> 31


class Selection:
    """Draws the scalars of a round: parameters are (size, p_l) in flat order."""

    def __init__(self, parameters: Sequence[tuple[int, Fraction]]) -> None:
        self._parameters = parameters
        with localcontext(prec=50):
            hazards = [
                -(1 - Decimal(p.numerator) / Decimal(p.denominator)).ln()
                if 0 < p < 1
                else Decimal(0)
                for _, p in parameters
            ]
            sizes = [size for size, _ in parameters]
            mean = sum((h * size for h, size in zip(hazards, sizes, strict=True)), Decimal(0))
            self._widths = [int((TWO_64 - 1) * h / mean) if h else 0 for h in hazards]
        self._thresholds = poisson_thresholds(mean) if mean else []
        self._starts = [0]
        for width, size in zip(self._widths, sizes, strict=True):
            self._starts.append(self._starts[-1] + width * size)

    def draw(self, seed: int) -> list[int]:
        """The selected scalars, ascending, as indices into all parameters end to end."""
        words = np.random.Philox(key=seed, counter=0)
        count = bisect_right(self._thresholds, int(words.random_raw()))
        chosen = set()
        begins = np.cumsum([0, *(size for size, _ in self._parameters)]).tolist()
        for dart in map(int, words.random_raw(count)):
            if dart < self._starts[-1]:
                number = bisect_right(self._starts, dart) - 1
                within = (dart - self._starts[number]) // self._widths[number]
                chosen.add(begins[number] + within)
        for number, (size, p) in enumerate(self._parameters):
            if p == 1:
                chosen.update(range(begins[number], begins[number] + size))
        return sorted(chosen)


class Reference:
    """N models in one process, shuffled as Algorithm 1 says."""

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        method: str,
        schedule: str,
        p: float,
    ) -> None:
        self._shuffles = method != "none"
        self._with_state = method == "wash-opt"
        self._models = models
        self._optimizers = optimizers
        groups: list[list[torch.nn.Parameter]] = []
        seen: set[torch.nn.Parameter] = set()
        for module in models[0].modules():
            group = []
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    group.append(parameter)
            if group:
                groups.append(group)
        self._selection = Selection(
            [
                (parameter.numel(), rate(schedule, p, layer, len(groups)))
                for layer, group in enumerate(groups)
                for parameter in group
            ]
        )
        assert all(p.is_contiguous() for m in models for p in m.parameters())
        n = len(models)
        self.sent = [[0] * n for _ in range(n)]
        """Scalars that went from row's member to column's so far."""

    def shuffle(self, seed: int) -> None:
        """One round: theta[:, i] = theta[pi_i, i] for every selected i."""
        if not self._shuffles:
            return
        n = len(self._models)
        selected = self._selection.draw(seed)
        words = np.random.Philox(key=seed, counter=2**192).random_raw(len(selected))
        images = [permutation(int(word), n) for word in words]
        for image in images:
            for receiver, sender in enumerate(image):
                if sender != receiver:
                    self.sent[sender][receiver] += 1
        slots = ["", *(_state_names(self._optimizers[0]) if self._with_state else ())]
        for slot in slots:
            rows = [self._tensors(member, slot) for member in range(n)]
            theta = np.stack(
                [np.concatenate([t.detach().numpy().ravel() for t in row]) for row in rows]
            )
            for i, image in zip(selected, images, strict=True):
                theta[:, i] = theta[image, i]
            for row, values in zip(rows, theta, strict=True):
                begin = 0
                for tensor in row:
                    part = values[begin : begin + tensor.numel()].reshape(tuple(tensor.shape))
                    tensor.detach().copy_(torch.from_numpy(part))
                    begin += tensor.numel()

    def _tensors(self, member: int, slot: str) -> list[torch.Tensor]:
        parameters = [p for p in self._models[member].parameters() if p.requires_grad]
        if not slot:
            return list(parameters)
        state: Any = self._optimizers[member].state
        return [state[parameter][slot] for parameter in parameters]


def _state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def plain_average(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean in order, in float64; of integers the maximum."""
    result = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if first.is_floating_point():
            total = torch.zeros(first.shape, dtype=torch.float64)
            for value in values:
                total = total + value.double()
            result[name] = (total / len(values)).to(first.dtype)
        else:
            result[name] = torch.stack(values).amax(dim=0)
    return result
