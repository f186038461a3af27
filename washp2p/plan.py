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
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from washp2p.permutations import LARGEST_TABLE, source_and_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from washp2p.layout import Layout

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_DARTS, _PERMUTATIONS, _GROUPS = 0, 1, 2
_WORD = 1 << 64
_FEW = 512  # darts a stretch, below which one division of arrays beats many by a number
_BLOCK = 1 << 14  # values handled at a time: what fits the cache, and GIL held for moments only


@dataclass(frozen=True)
class Route:
    """One direction of a plan: the values that go to, or come from, each peer.

    `indices` (int64) are places in the flat vector, grouped by peer and ascending within each
    group; `parts` are the groups as (peer's position, begin, end) into `indices`. Peers without a
    value have no part, nor has the member itself.
    """

    indices: Indices
    parts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What one member does in one round.

    Both ends of every pair derive their own plan, and what one sends is, in the same order, what
    the other expects. `fingerprint` is 64 bits that all members who exchange in the round share.
    """

    send: Route
    receive: Route
    selected: int
    fingerprint: int


class Deriver:
    """Derives one member's plans. Holds small tables made once for layout, rates and roster size.

    `position` is the member's own among `n`; `rates` are p_l by layer. With `group` > 0 each seed
    also deals the roster into random groups of at most that many, which permute among themselves.
    For one thread at a time: scratch memory, proportional to what is selected, is reused.
    """

    def __init__(
        self, layout: Layout, rates: Sequence[Fraction], n: int, position: int, group: int = 0
    ) -> None:
        assert n >= 2
        assert 0 <= position < n
        self._n = n
        self._position = position
        self._group = group if group < n else 0
        self._stretches, mean = _stretches(layout, rates)
        self._ends, self._begins, self._widths, self._offsets = (
            np.array([getattr(s, name) for s in self._stretches], dtype=np.uint64)
            for name in ("end", "begin", "width", "offset")
        )
        self._certain = sum(s.size for s in self._stretches if s.certain)
        self._fewest, self._thresholds = _poisson_thresholds(mean)
        self._everyone = _Group(number=0, positions=np.arange(n), own=position)
        self._philox = np.random.Philox(key=0)
        self._scratch = tuple(np.empty(0, dtype=np.uint64) for _ in range(2))

    def derive(self, seed: int) -> Plan:
        """The plan of the round whose seed is `seed` (64 bits). O(selected); does not block."""
        group = self._deal(seed) if self._group else self._everyone
        indices = self._select(self._stream(seed, _DARTS))
        count, n = len(indices), len(group.positions)
        stream = self._stream(seed, _PERMUTATIONS, group.number)
        draws = self._scratch[0][:count]  # the darts are done with
        if n > LARGEST_TABLE:
            _fill(draws, stream)
        else:
            _fill_halves(draws, stream)
        fingerprint = _fingerprint(indices, draws)
        sources, targets = source_and_target(draws, n, group.own)
        return Plan(
            send=_route(indices, targets, group, draws),
            receive=_route(indices, sources, group, draws),
            selected=count,
            fingerprint=fingerprint,
        )

    def _stream(self, seed: int, stream: int, substream: int = 0) -> np.random.Philox:
        """Philox with key (seed, 0) and counter (0, 0, substream, stream); the last one is lost."""
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array([0, 0, substream, stream], dtype=np.uint64),
                "key": np.array([seed, 0], dtype=np.uint64),
            },
            "buffer": np.zeros(4, dtype=np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._philox

    def _deal(self, seed: int) -> _Group:
        """The member's group: the roster in the order of one raw word each, cut evenly."""
        order = np.argsort(self._stream(seed, _GROUPS).random_raw(self._n), kind="stable")
        count = -(-self._n // self._group)
        place = int(np.flatnonzero(order == self._position)[0])
        number = ((place + 1) * count - 1) // self._n
        begin, end = self._n * number // count, self._n * (number + 1) // count
        return _Group(number=number, positions=order[begin:end], own=place - begin)

    def _select(self, stream: np.random.Philox) -> Indices:
        """Selected places of the flat vector, ascending: a view of scratch memory."""
        word = stream.random_raw(1)[0]
        count = self._fewest + int(np.searchsorted(self._thresholds, word, side="right"))
        most = count + self._certain
        if len(self._scratch[0]) < most:
            self._scratch = tuple(np.empty(most + most // 4, dtype=np.uint64) for _ in range(2))
        darts, found = self._scratch[0][:count], self._scratch[1]
        _fill(darts, stream)
        darts.sort()
        cuts = np.searchsorted(darts, self._ends)
        if self._certain or count > _FEW * len(cuts):
            at = self._place_by_stretch(darts, cuts.tolist(), found)
        else:
            at = self._place_at_once(darts, cuts, found)
        hits = found[:at].view(np.int64)
        first = np.empty(at, dtype=bool)
        first[:1] = True
        np.not_equal(hits[1:], hits[:-1], out=first[1:])
        size = 0
        for begin in range(0, at, _BLOCK):
            kept = hits[begin : begin + _BLOCK][first[begin : begin + _BLOCK]]
            hits[size : size + len(kept)] = kept
            size += len(kept)
        return hits[:size]

    def _place_at_once(self, darts: Words, cuts: npt.NDArray[np.intp], out: Words) -> int:
        """Which scalars sorted darts hit: for few darts on many stretches."""
        counts = np.diff(cuts, prepend=0)
        hit = darts[: cuts[-1] if len(cuts) else 0]
        hits = out[: len(hit)]
        np.subtract(hit, self._begins.repeat(counts), out=hits)
        np.floor_divide(hits, self._widths.repeat(counts), out=hits)
        hits += self._offsets.repeat(counts)
        return len(hits)

    def _place_by_stretch(self, darts: Words, cuts: list[int], out: Words) -> int:
        """The same, stretch by stretch, those with p_l = 1 filled: for many darts."""
        begin = at = 0
        for stretch, end in zip(self._stretches, cuts, strict=True):
            size = stretch.size if stretch.certain else end - begin
            hits = out[at : at + size]
            if stretch.certain:
                hits[:] = np.arange(stretch.offset, stretch.offset + size, dtype=np.uint64)
            elif size:
                np.subtract(darts[begin:end], stretch.begin, out=hits)
                np.floor_divide(hits, stretch.width, out=hits)
                hits += stretch.offset
            begin = end
            at += size
        return at


@dataclass(frozen=True)
class _Group:
    """Who permutes among themselves: their positions in the roster, in the order dealt.

    `own` is the member's place in `positions`; `number` tells the round's groups apart.
    """

    number: int
    positions: Indices
    own: int


def _route(
    indices: Indices, peers: npt.NDArray[np.unsignedinteger], group: _Group, scratch: Words
) -> Route:
    """Group `indices` by peer, the member's own left out."""
    size = len(group.positions)
    if size <= LARGEST_TABLE:
        grouped, bounds = _group_few(indices, peers, size, group.own, scratch)
    else:
        order = peers.argsort(kind="stable")
        bounds = np.searchsorted(peers.take(order), np.arange(size + 1))
        first, end = bounds[group.own : group.own + 2]
        grouped = np.concatenate((indices.take(order[:first]), indices.take(order[end:])))
        bounds[group.own + 1 :] -= end - first
    some = np.flatnonzero(np.diff(bounds))
    return Route(
        grouped,
        tuple(
            zip(
                group.positions[some].tolist(),
                bounds[some].tolist(),
                bounds[some + 1].tolist(),
                strict=True,
            )
        ),
    )


def _group_few(
    indices: Indices,
    peers: npt.NDArray[np.unsignedinteger],
    size: int,
    own: int,
    scratch: Words,
) -> tuple[Indices, npt.NDArray[np.intp]]:
    """The same among few peers: a pass a peer costs less than to sort. Block by block, because
    large memory that is new costs more than the work on it.
    """
    pieces: list[list[Indices]] = [[] for _ in range(size)]
    room = scratch[: len(indices)].view(np.int64)
    at = 0
    for begin in range(0, len(indices), _BLOCK):
        part, block = indices[begin : begin + _BLOCK], peers[begin : begin + _BLOCK]
        for peer in range(size):
            if peer != own:
                mine = np.flatnonzero(block == peer)
                piece = room[at : at + len(mine)]
                part.take(mine, out=piece, mode="clip")
                pieces[peer].append(piece)
                at += len(mine)
    flat = [piece for of_peer in pieces for piece in of_peer]
    bounds = np.zeros(size + 1, dtype=np.intp)
    np.cumsum([sum(map(len, of_peer)) for of_peer in pieces], out=bounds[1:])
    return np.concatenate(flat) if flat else indices[:0].copy(), bounds


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


def _fill(out: Words, stream: np.random.Philox) -> None:
    """The stream's next words, a few at a time: no large memory but the caller's."""
    for begin in range(0, len(out), _BLOCK):
        part = out[begin : begin + _BLOCK]
        part[:] = stream.random_raw(len(part))


def _fill_halves(out: Words, stream: np.random.Philox) -> None:
    """The stream's next words in halves of 32 bits, the low half first."""
    for begin in range(0, len(out), 2 * _BLOCK):
        part = out[begin : begin + 2 * _BLOCK]
        words = stream.random_raw((len(part) + 1) // 2).astype("<u8", copy=False)
        part[:] = words.view("<u4")[: len(part)]


def _fingerprint(indices: Indices, draws: Words) -> int:
    """The sum of (index + 1) * draw, modulo 2**64."""
    products = int(np.dot(indices.view(np.uint64), draws))
    return (products + int(draws.sum(dtype=np.uint64))) % _WORD
