"""The reference: all methods on dense arrays, slow and plain, in lockstep or late.

It is the oracle for the peer-to-peer system. So it shares no code with the plan, the store or the
exchange: everything is written again from docs/protocol.md, with Python integers, fractions and
loops.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from math import factorial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TWO_64 = 2**64
TABLE_UP_TO = 7
ROUNDS = 24


def rate(schedule: str, p: float, layer: int, layers: int) -> Fraction:
    """The selection rate p_l of one of `layers` layers (equation 6 for `decreasing`)."""
    if schedule == "constant" or layers == 1:
        return Fraction(p)
    if schedule == "increasing":
        return Fraction(p) * layer / (layers - 1)
    return Fraction(p) * (1 - Fraction(layer, layers - 1))


def poisson_thresholds(mean: Decimal) -> list[int]:
    """floor(2**64 P(M <= m)) for Poisson M and m = 0, 1, ... until 1 - P(M <= m) <= 2**-70."""
    with localcontext(prec=80, Emin=MIN_EMIN, Emax=MAX_EMAX):
        term = (-mean).exp()
        total = term
        thresholds = [int(total * TWO_64)]
        while 1 - total > Decimal(2) ** -70 and (term or not total):
            term = term * mean / len(thresholds)
            total += term
            thresholds.append(min(int(total * TWO_64), TWO_64 - 1))
    return thresholds


def block_of(number: int, parameters: Sequence[tuple[int, int]]) -> range:
    """The scalars of block `number` of all parameters end to end.

    `parameters` has each one's (size, B).
    """
    begin = 0
    for size, length in parameters:
        count = -(-size // length)
        if number < count:
            return range(begin + number * length, begin + min((number + 1) * length, size))
        number -= count
        begin += size
    raise IndexError(number)


def permutations_of(seed: int, group: int, n: int, count: int) -> list[list[int]]:
    """The permutations pi_i of the `n` members of group `group`, for `count` selected blocks."""
    words = np.random.Philox(key=seed, counter=2**192 + group * 2**128).random_raw(count).tolist()
    if n > TABLE_UP_TO:
        return [keyed_permutation(word, n) for word in words]
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    return [numbered_permutation(half * factorial(n) >> 32, n) for half in halves[:count]]


def numbered_permutation(number: int, n: int) -> list[int]:
    """Permutation `number` of 0, ..., n - 1 in lexicographic order."""
    left = list(range(n))
    return [left.pop(number // factorial(k) % (k + 1)) for k in range(n - 1, -1, -1)]


def keyed_permutation(word: int, n: int) -> list[int]:
    """The permutation of 0, ..., n - 1 by the swap-or-not shuffle with the key `word`."""
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


def deal(seed: int, n: int, group: int) -> list[list[int]]:
    """The round's groups of positions: random, of at most `group`; a single one if that is 0."""
    if not group or group >= n:
        return [list(range(n))]
    words = np.random.Philox(key=seed, counter=2 * 2**192).random_raw(n).tolist()
    order = sorted(range(n), key=lambda position: (words[position], position))
    count = -(-n // group)
    return [order[n * j // count : n * (j + 1) // count] for j in range(count)]


def draw_pairs(seed: int, n: int) -> list[list[int]]:
    """The two positions that papa-2 draws for each of `n` members."""
    every = [[a, b] for a in range(n) for b in range(n) if a != b]
    words = np.random.Philox(key=seed, counter=3 * 2**192).random_raw(n).tolist()
    return [every[word * len(every) >> 64] for word in words]


def due(config: Any, rounds: int) -> Callable[[int], bool]:
    """A function of a round's number, 1 to `rounds`: whether members exchange values in it."""
    by_epochs = config.method.name in {"papa-all", "dart", "papa-2"}
    period = (
        Fraction(rounds * config.method.every, config.training.epochs)
        if by_epochs
        else config.method.every
    )
    start, end = (
        Fraction(when) * rounds
        if "." in when
        else Fraction(int(when) * rounds, config.training.epochs)
        for when in (config.method.from_, config.method.until)
    )
    if by_epochs:
        end = min(end, Fraction(rounds - 1))
    return lambda r: start < r <= end and r // period > (r - 1) // period


def splitmix(z: int) -> int:
    """The finaliser of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % TWO_64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % TWO_64
    return z ^ z >> 31


class Selection:
    """Draws the blocks of a round; a block is one scalar as a rule.

    `parameters` has each tensor's (number of blocks, p_l), in flat order.
    """

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
        """The selected blocks, ascending, numbered over all parameters end to end."""
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


class Round:
    """A round's plan, and the values that each member held at the selected scalars when it sent."""

    def __init__(self, selected: list[int], sources: dict[int, np.ndarray]) -> None:
        self.selected = np.array(selected, dtype=np.int64)
        self.sources = sources
        """By member: for each selected scalar, the member from which the new value comes."""
        self.groups: list[list[int]] = []
        """Members that take a mean together, each of its own shard. Empty without such means."""
        self.pairs: dict[int, list[int]] = {}
        """By member, the members whose values it averages, if means have a single leg."""
        self.held: dict[int, list[np.ndarray]] = {}
        self.means: dict[int, np.ndarray] = {}
        """By member, the mean that it has computed of its shard."""

    def group_of(self, member: int) -> list[int]:
        """The members that take the mean together with a member, itself included."""
        return next(group for group in self.groups if member in group)

    def shard(self, member: int) -> slice:
        """The selected scalars that a member reduces."""
        group = self.group_of(member)
        place, count = group.index(member), len(self.selected)
        return slice(count * place // len(group), count * (place + 1) // len(group))


class Planned(Protocol):
    """A method known by its plans only."""

    slots: Sequence[str]
    shares: bool
    """Whether its means have two legs."""

    def draw(self, seed: int, roster: Sequence[int]) -> Round:
        """The round of seed `seed` for the members of `roster`."""

    def weight(self, lr: float) -> float:
        """How far a mean pulls a member's values, as `Strategy.weight` says."""


class Reference:
    """Models in one process that exchange values by a method, in lockstep or late.

    A member's number is its index in `models`. Each round's roster says which members take part.
    `due` takes a round's number and tells whether members exchange values in it. `planned` is a
    method of another package. A mean in shards has two legs: each member first computes the mean of
    its shard, then takes over the means of the other shards.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        method: str,
        schedule: str,
        p: float,
        group: int = 0,
        block: str = "1",
        late: str = "overwrite",
        last: str = "",
        alpha: float = 0.0,
        due: Callable[[int], bool] = lambda _: True,
        planned: Planned | None = None,
    ) -> None:
        self._planned = planned
        self._method = method
        self._due = due
        self._alpha = alpha
        self._parameters = [[p for p in m.parameters() if p.requires_grad] for m in models]
        self._optimizers = optimizers
        self._lr = [0.0] * len(models)
        self._highest_lr = [0.0] * len(models)
        self._group = group
        self._adds = late == "difference"
        self._slots = ["", *(_state_names(optimizers[0]) if method == "wash-opt" else ())]
        shares = method in {"sparta", "papa", "papa-all", "dart"}
        if planned is not None:
            self._slots, shares = ["", *planned.slots], planned.shares
        self.legs = [0, 1] if shares else [0]
        layers = _layers(models[0], last)
        count = 1 + max(layer for _, layer in layers)
        sizes = [parameter.numel() for parameter, _ in layers]
        lengths = [
            int(block) if block != "row" else max(1, size // max(1, 1, *parameter.shape[:1]))
            for (parameter, _), size in zip(layers, sizes, strict=True)
        ]
        self._cuts = list(zip(sizes, lengths, strict=True)) if block != "1" else None
        self._selection = Selection(
            [
                (-(-size // length), rate(schedule, p, layer, count))
                for (_, layer), size, length in zip(layers, sizes, lengths, strict=True)
            ]
        )
        assert all(p.is_contiguous() for m in models for p in m.parameters())
        n = len(models)
        self._everyone = range(n)
        self._rounds: dict[int, Round] = {}
        self._size = sum(parameter.numel() for parameter, _ in layers)
        self._newest = np.zeros((n, self._size), dtype=np.int64)
        self._done = 0
        self.sent = [[0] * n for _ in range(n)]
        """sent[a][b]: how many scalars member a has sent to member b so far."""

    def shuffle(self, seed: int) -> None:
        """Do one round in lockstep: theta[:, i] = theta[pi_i, i] for all selected i, or a mean."""
        self._done += 1
        for member in self._everyone:
            self.gather(member, self._done, seed)
        for leg in self.legs:
            for member in self._everyone:
                self.apply(member, self._done, leg=leg)
        self.forget([self._done])

    def gather(
        self, member: int, number: int, seed: int, roster: Sequence[int] | None = None
    ) -> None:
        """Send a member's values of round `number`: keep them until the other members apply them.

        These are the member's present values at the scalars that `seed` selects. `roster` has the
        members of the round, in order (default: all).
        """
        roster = self._everyone if roster is None else roster
        group = self._optimizers[member].param_groups[0]
        self._lr[member] = float(group["lr"])
        highest = max(self._lr[member], float(group.get("initial_lr", 0.0)))
        self._highest_lr[member] = max(self._highest_lr[member], highest)
        if self._method == "none" or len(roster) < 2 or not self._due(number):
            return
        if number not in self._rounds:
            self._rounds[number] = self._draw(seed, roster)
        this = self._rounds[number]
        this.held[member] = [self._flat(member, slot)[this.selected] for slot in self._slots]
        for receiver in roster:
            if receiver == member:
                continue
            if this.pairs:
                count = len(this.selected) * (member in this.pairs[receiver])
            elif this.groups:
                together = receiver in this.group_of(member)
                own, other = (len(this.selected[this.shard(m)]) for m in (member, receiver))
                count = (own + other) * together
            else:
                count = int((this.sources[receiver] == member).sum())
            self.sent[member][receiver] += count

    def apply(
        self, member: int, number: int, senders: Sequence[int] | None = None, leg: int = 0
    ) -> None:
        """Apply to a member one leg of round `number`: the values of `senders` (default: all)."""
        this = self._rounds.get(number)
        if this is None:
            return
        if this.pairs:
            among = this.pairs[member]
            came = [m for m in among if m != member and (senders is None or m in senders)]
            if came:
                self._pull(
                    member, this.selected, _mean(this.held, slice(None), among, came, member)
                )
        elif this.groups and leg == 0:
            group, shard = this.group_of(member), this.shard(member)
            came = [m for m in group if m != member and (senders is None or m in senders)]
            this.means[member] = _mean(this.held, shard, group, came, member)
            if came:
                self._pull(member, this.selected[shard], this.means[member])
        elif this.groups:
            for other in this.group_of(member):
                if other != member and (senders is None or other in senders):
                    self._pull(member, this.selected[this.shard(other)], this.means[other])
        else:
            self._permute(this, member, number, senders)

    def give(self, donor: int, guest: int) -> None:
        """Copy the highest learning rate so far of `donor` to `guest`."""
        self._highest_lr[guest] = self._highest_lr[donor]

    def among(self, member: int, number: int) -> list[int]:
        """The members whose values are in the mean that a member takes in a round.

        Empty if the round has no exchange. Call it only for a method that takes means.
        """
        this = self._rounds.get(number)
        if this is None:
            return []
        return this.pairs[member] if this.pairs else this.group_of(member)

    def _pull(self, member: int, places: np.ndarray, mean: np.ndarray) -> None:
        """Set theta to (1 - w) theta + w mean. w is 1, except for papa and `planned` methods.

        For papa w = (1 - alpha) lr / highest lr so far (PAPA, section 2.3). The highest lr is over
        the member's own steps and its donor's.
        """
        theta = self._flat(member, "")
        rounded = torch.from_numpy(mean).to(self._tensors(member, "")[0].dtype)
        mean = (rounded.float() if rounded.dtype is torch.bfloat16 else rounded).numpy()
        usable = np.isfinite(mean)
        places, mean = places[usable], mean[usable]
        highest = self._highest_lr[member]
        lr = self._lr[member] / highest if highest else 1.0
        weight = lr * (1 - self._alpha) if self._method == "papa" else 1.0
        if self._planned is not None:
            weight = self._planned.weight(lr)
        if weight != 1:
            mean = theta[places] * (1 - weight) + mean * weight
        theta[places] = mean
        self._put(member, "", theta)

    def _permute(
        self, this: Round, member: int, number: int, senders: Sequence[int] | None
    ) -> None:
        sources = this.sources[member]
        others = this.sources if senders is None else senders
        chosen = np.isin(sources, [sender for sender in others if sender != member])
        for sender, sent in this.held.items():  # what is not finite is refused, in all slots
            finite = np.isfinite(sent).all(axis=0)
            chosen &= (sources != sender) | finite
        if not self._adds:
            chosen &= self._newest[member][this.selected] <= number
        places, sources = this.selected[chosen], sources[chosen]
        if not len(places):
            return
        for k, slot in enumerate(self._slots):
            theta = self._flat(member, slot)
            arrived = np.empty(len(places), dtype=theta.dtype)
            for sender in set(sources.tolist()):
                held = this.held[sender][k]
                arrived[sources == sender] = held[chosen][sources == sender]
            own = this.held[member][k]
            theta[places] = theta[places] + (arrived - own[chosen]) if self._adds else arrived
            self._put(member, slot, theta)
        self._newest[member][places] = number

    def ready(self, number: int, senders: Sequence[int] | None = None, leg: int = 0) -> bool:
        """Whether `senders` (default: all) have sent a leg of round `number`."""
        this = self._rounds.get(number)
        if this is None:
            return True
        members = this.sources or {m for group in this.groups for m in group} or this.pairs
        there = this.means if leg == 1 else this.held
        return there.keys() >= set(members if senders is None else senders)

    def forget(self, numbers: Sequence[int]) -> None:
        """Forget these rounds: no member will send or apply them again."""
        for number in numbers:
            self._rounds.pop(number, None)

    def _draw(self, seed: int, roster: Sequence[int]) -> Round:
        if self._planned is not None:
            return self._planned.draw(seed, roster)
        if self._method.startswith("papa") or self._method == "dart":
            this = Round(list(range(self._size)), {})
            if self._method == "papa-2":
                drawn = draw_pairs(seed, len(roster))
                pairs = [sorted(roster[position] for position in pair) for pair in drawn]
                this.pairs = dict(zip(roster, pairs, strict=True))
            else:
                this.groups = [list(roster)]
            return this
        chosen = self._selection.draw(seed)
        blocks = [
            range(i, i + 1) if self._cuts is None else block_of(i, self._cuts) for i in chosen
        ]
        selected = [scalar for block in blocks for scalar in block]
        dealt = deal(seed, len(roster), self._group)
        if self._method == "sparta":
            this = Round(selected, {})
            this.groups = [[roster[position] for position in positions] for positions in dealt]
            return this
        sources = {}
        for number, positions in enumerate(dealt):
            members = [roster[position] for position in positions]
            images = permutations_of(seed, number, len(members), len(blocks))
            each = [image for image, block in zip(images, blocks, strict=True) for _ in block]
            for place, member in enumerate(members):
                sources[member] = np.array([members[image[place]] for image in each], dtype=int)
        return Round(selected, sources)

    def _flat(self, member: int, slot: str) -> np.ndarray:
        tensors = [t.detach() for t in self._tensors(member, slot)]
        exact = [t.float() if t.dtype is torch.bfloat16 else t for t in tensors]
        return np.concatenate([t.numpy().ravel() for t in exact])

    def _put(self, member: int, slot: str, theta: np.ndarray) -> None:
        begin = 0
        for tensor in self._tensors(member, slot):
            part = theta[begin : begin + tensor.numel()].reshape(tuple(tensor.shape))
            tensor.detach().copy_(torch.from_numpy(part))
            begin += tensor.numel()

    def _tensors(self, member: int, slot: str) -> list[torch.Tensor]:
        parameters = self._parameters[member]
        if not slot:
            return list(parameters)
        optimizer = self._optimizers[member]
        state: Any = optimizer.state
        for parameter in parameters:  # of one that does not train yet there is none: zeros
            if slot not in state[parameter]:
                if not isinstance(optimizer, torch.optim.SGD):
                    state[parameter].setdefault("step", torch.zeros(()))
                state[parameter][slot] = torch.zeros_like(parameter)
        return [state[parameter][slot] for parameter in parameters]


def _mean(
    held: dict[int, list[np.ndarray]], part: slice, among: list[int], came: list[int], own: int
) -> np.ndarray:
    """The float64 mean of finite values of those members of `among` that are `own` or in `came`."""
    values = [held[m][0][part].astype(np.float64) for m in among if m in came or m == own]
    finite = [np.isfinite(each) for each in values]
    total = np.zeros_like(values[0])
    for ok, each in zip(finite, values, strict=True):
        total = total + np.where(ok, each, 0.0)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = total / np.sum(finite, axis=0)
    return mean


def _state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.param_groups[0]["momentum"] else ()
    return ("exp_avg", "exp_avg_sq")


def plain_average(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts, in order, in float64. Integers become their maximum."""
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


def _layers(model: torch.nn.Module, last: str) -> list[tuple[torch.nn.Parameter, int]]:
    """The trainable parameters in flat order, each with the number of its layer.

    A layer is a module that owns parameters, including those of its parametrizations, in the order
    of registration. If `last` names a module or a parameter, the owners of its parameters are the
    last layer.
    """
    found: list[tuple[torch.nn.Parameter, str]] = []
    for name, module in model.named_modules():
        owner = name.split(".parametrizations.")[0].removeprefix("parametrizations.")
        if name.startswith("parametrizations."):
            owner = ""
        for parameter in module._parameters.values():
            known = any(parameter is other for other, _ in found)
            if parameter is not None and parameter.requires_grad and not known:
                found.append((parameter, owner))
    order = list(dict.fromkeys(owner for _, owner in found))
    if last:
        named = [
            parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if name == last or name.startswith(last + ".")
        ]
        moved = {owner for parameter, owner in found if any(parameter is other for other in named)}
        order = [owner for owner in order if owner not in moved]
        return [(p, len(order) if o in moved else order.index(o)) for p, o in found]
    return [(parameter, order.index(owner)) for parameter, owner in found]
