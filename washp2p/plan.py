"""The plan: from one 64-bit seed to who sends which values to whom (section 3, Algorithm 1).

Pure and deterministic to the bit on every machine: raw words of Philox4x64-10, integer mapping,
exact tables. No NumPy `Generator` method and no floating-point transcendental may be used here;
docs/protocol.md states the derivation so that it can be written again from the text alone, and
`version.DERIVATION` changes whenever a single bit of any plan does.

Selection, in time proportional to what is selected. Darts are thrown at a line on which every
scalar of layer l owns a stretch of length proportional to h_l = -ln(1 - p_l); their number is
Poisson with mean sum_l d_l h_l. So the darts that hit one scalar are Poisson(h_l), independently of
all others, and it is hit at all with probability 1 - exp(-h_l) = p_l: equation 3, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import permutations
from math import factorial, isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from washp2p.layout import Layout

LARGEST_TABLE = 7  # members; a table of all N! permutations has 5,040 rows there
KEYED_ROUNDS = 24  # a position is still where it began with probability 2**-24

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_DARTS, _PERMUTATIONS = 0, 1
_WORD = 1 << 64
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Route:
    """One direction of a plan: the values that go to, or come from, each peer.

    `indices` (int64) are places in the flat vector, grouped by the peer's position and ascending
    within each group; `bounds` (N + 1 entries) are the limits of the groups, so the values of
    position m are `indices[bounds[m]:bounds[m + 1]]`. The member's own group is empty.
    """

    indices: Indices
    bounds: tuple[int, ...]

    def count(self, position: int) -> int:
        """How many values go to, or come from, `position`."""
        return self.bounds[position + 1] - self.bounds[position]


@dataclass(frozen=True)
class Plan:
    """What one member does in one round.

    Both ends of every pair derive their own plan, and what one sends is, in the same order, what
    the other expects. `fingerprint` is 64 bits that all members of the round share.
    """

    send: Route
    receive: Route
    selected: int
    fingerprint: int


class Deriver:
    """Derives one member's plans. Holds small tables made once for layout, rates and roster size.

    `position` is the member's own among `n`; `rates` are p_l by layer. Thread-compatible: it holds
    no state that `derive` changes.
    """

    def __init__(self, layout: Layout, rates: Sequence[Fraction], n: int, position: int) -> None:
        assert n >= 2
        assert 0 <= position < n
        self._n = n
        self._position = position
        self._stretches, mean = _stretches(layout, rates)
        self._ends = np.array([s.end for s in self._stretches], dtype=np.uint64)
        self._certain = sum(s.size for s in self._stretches if s.certain)
        self._fewest, self._thresholds = _poisson_thresholds(mean)
        self._rows = _permutation_rows(n, position) if n <= LARGEST_TABLE else None

    def derive(self, seed: int) -> Plan:
        """The plan of the round whose seed is `seed` (64 bits). O(selected); does not block."""
        indices = self._select(_philox(seed, _DARTS))
        draws = _philox(seed, _PERMUTATIONS).random_raw(len(indices))
        if self._rows is None:
            sources = _keyed(draws, self._n, self._position, inverse=False)
            targets = _keyed(draws, self._n, self._position, inverse=True)
        else:
            draws >>= _HALF
            draws *= np.uint64(factorial(self._n))
            draws >>= _HALF
            sources, targets = self._rows[0][draws], self._rows[1][draws]
        return Plan(
            send=self._route(indices, targets),
            receive=self._route(indices, sources),
            selected=len(indices),
            fingerprint=_fingerprint(indices, draws),
        )

    def _select(self, stream: np.random.Philox) -> Indices:
        """Selected places of the flat vector, ascending."""
        word = stream.random_raw(1)[0]
        count = self._fewest + int(np.searchsorted(self._thresholds, word, side="right"))
        darts: Words = stream.random_raw(count)
        darts.sort()
        cuts = np.searchsorted(darts, self._ends).tolist()
        found = np.empty(count + self._certain, dtype=np.uint64)
        begin = at = 0
        for stretch, end in zip(self._stretches, cuts, strict=True):
            if stretch.certain:
                size = stretch.size
                found[at : at + size] = np.arange(
                    stretch.offset, stretch.offset + size, dtype=np.uint64
                )
            else:
                size = end - begin
                if not size:
                    continue
                hit = found[at : at + size]
                np.subtract(darts[begin:end], stretch.begin, out=hit)
                np.floor_divide(hit, stretch.width, out=hit)
                hit += stretch.offset
            begin = end
            at += size
        hits = found[:at].view(np.int64)
        first = np.empty(at, dtype=bool)
        first[:1] = True
        np.not_equal(hits[1:], hits[:-1], out=first[1:])
        return hits[first]

    def _route(self, indices: Indices, peers: npt.NDArray[np.unsignedinteger]) -> Route:
        order = np.argsort(peers, kind="stable")
        counts = np.bincount(peers, minlength=self._n)
        own_begin = int(counts[: self._position].sum())
        own_end = own_begin + int(counts[self._position])
        counts[self._position] = 0
        return Route(
            indices=indices[np.concatenate((order[:own_begin], order[own_end:]))],
            bounds=(0, *np.cumsum(counts).tolist()),
        )


@dataclass(frozen=True)
class _Stretch:
    """A parameter's place on the line of darts: each of its `size` scalars owns `width` words."""

    offset: np.uint64
    size: int
    begin: np.uint64
    width: np.uint64
    end: int
    certain: bool


def _stretches(layout: Layout, rates: Sequence[Fraction]) -> tuple[list[_Stretch], Decimal]:
    """Places on the line for all parameters that can be selected, and the mean count of darts."""
    entries = [e for e in layout.entries if e.size and rates[e.layer]]
    with localcontext(prec=50):
        hazard = {
            rate: -(1 - Decimal(rate.numerator) / Decimal(rate.denominator)).ln()
            for rate in {rates[e.layer] for e in entries}
            if rate < 1
        }
        mean = sum((hazard.get(rates[e.layer], Decimal(0)) * e.size for e in entries), Decimal(0))
        width = {rate: int((_WORD - 1) * h / mean) for rate, h in hazard.items()}
    stretches = []
    begin = 0
    for entry in entries:
        certain = rates[entry.layer] == 1
        step = 0 if certain else width[rates[entry.layer]]
        end = begin + step * entry.size
        stretches.append(
            _Stretch(
                offset=np.uint64(entry.offset),
                size=entry.size,
                begin=np.uint64(begin),
                width=np.uint64(step),
                end=end,
                certain=certain,
            )
        )
        begin = end
    return stretches, mean


@lru_cache(maxsize=8)
def _poisson_thresholds(mean: Decimal) -> tuple[int, Words]:
    """`low`, and floor(2**64 P(M <= m)) for m = low, low + 1, ...

    M is `low` plus the number of thresholds <= a raw word: the thresholds below `low` are all 0.
    Weights are carried as integers outward from the mode and divided by their sum, which needs no
    exponential; what lies outside the window has less than 2**-64 of the mass.
    """
    if not mean:
        return 0, np.zeros(0, dtype=np.uint64)
    numerator, denominator = mean.as_integer_ratio()
    mode = numerator // denominator
    reach = 12 * isqrt(mode + 1) + 100
    low, high = max(0, mode - reach), mode + reach
    unit = 1 << 160
    down, up = [], [unit]
    weight = unit
    for m in range(mode, low, -1):
        weight = weight * m * denominator // numerator
        down.append(weight)
    weight = unit
    for m in range(mode + 1, high + 1):
        weight = weight * numerator // (denominator * m)
        up.append(weight)
    weights = [*reversed(down), *up]
    total = sum(weights)
    thresholds = []
    cumulated = 0
    for weight in weights:
        cumulated += weight
        thresholds.append(min(cumulated * _WORD // total, _WORD - 1))
    return low, np.array(thresholds, dtype=np.uint64)


def _permutation_rows(n: int, position: int) -> npt.NDArray[np.uint8]:
    """Where all permutations, lexicographic, and their inverses take `position`: shape (2, n!)."""
    forward = np.array(list(permutations(range(n))), dtype=np.uint8)
    return np.stack((forward[:, position], np.argmax(forward == position, axis=1).astype(np.uint8)))


def _philox(seed: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=seed, counter=stream << 192)


def _fingerprint(indices: Indices, draws: Words) -> int:
    terms = indices.view(np.uint64) + np.uint64(1)
    terms *= (draws << np.uint64(1)) | np.uint64(1)
    return int(terms.sum(dtype=np.uint64))


def _keyed(keys: Words, n: int, position: int, *, inverse: bool) -> npt.NDArray[np.uint16]:
    """Where the permutation of each key takes `position`: its own column, or its own row.

    A swap-or-not shuffle (Hoang, Morris, Rogaway 2012): in each round x may be exchanged with
    k - x (mod n), k and the coin being functions of the key, the round and the pair. Each round is
    its own inverse, so the inverse runs the rounds backwards. Cost per value independent of n.
    """
    size = np.uint64(n)
    x = np.full(len(keys), position, dtype=np.uint64)
    rounds = range(KEYED_ROUNDS)
    for number in reversed(rounds) if inverse else rounds:
        mixed = _mix(keys + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % _WORD))
        partner = ((mixed >> _HALF) * size >> _HALF) + size - x
        partner[partner >= size] -= size
        coin = _mix(mixed ^ (np.maximum(x, partner) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03))
        x = np.where(coin >> np.uint64(63), partner, x)
    return x.astype(np.uint16)


def _mix(z: Words) -> Words:
    """The finaliser of splitmix64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
