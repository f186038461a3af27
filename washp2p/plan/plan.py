"""The plan: who sends which values to whom, from one 64-bit seed (WASH, section 3, Algorithm 1).

A plan is the same to the bit on every machine. It comes from raw words of Philox4x64-10, integer
mapping and exact tables. No method of a NumPy `Generator` and no floating-point transcendental may
be used here. docs/protocol.md states the derivation, so that it can be written again from the text
alone. `version.DERIVATION` changes whenever a single bit of any plan changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from washp2p.plan.blocks import Blocks
from washp2p.plan.permutations import LARGEST_TABLE, source_and_target
from washp2p.plan.philox import BLOCK, PhiloxStreams
from washp2p.plan.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from washp2p.plan.philox import Words
    from washp2p.protocol.layout import Layout

Indices = npt.NDArray[np.int64]

_DARTS, _PERMUTATIONS, _GROUPS, _PAIRS = range(4)
_WORD = 1 << 64


@dataclass(frozen=True)
class Route:
    """One direction of a plan: the values that go to each peer, or come from it.

    `indices` (int64) are positions in the flat vector, grouped by peer and ascending within a
    group. `parts` has the groups as (peer's position, begin, end) into `indices`. A peer without
    values has no part, and neither has the member itself. Where a mean is taken, groups may share
    indices.
    """

    indices: Indices
    parts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Mean:
    """Marks a plan whose received values are contributions to a mean.

    With `own`, the member's own values contribute, too. With `shared`, each member takes the mean
    of its shard. In a second leg it sends that mean to the members that contributed to it. It
    receives the means of other shards from the members to which it sent values in the first leg.
    """

    own: bool
    shared: bool


@dataclass(frozen=True)
class Plan:
    """What one member sends and receives in one round.

    `selected` is the number of scalars that the round selects. Received values replace the
    member's own or, if `mean` is set, contribute to a mean. Each member derives its own plan. Their
    plans agree on what one member sends to another, and in which order. `fingerprint` has 64 bits
    that are equal on all members of the exchange.
    """

    send: Route
    receive: Route
    selected: int
    fingerprint: int
    mean: Mean | None = None


class Deriver:
    """Derives one member's plans, from small tables made once for layout, rates and roster size.

    `position` is the member's own among `n`; `rates` are p_l by layer. With `group` > 0 each seed
    also deals the roster into random groups of at most `group` members. Values are then permuted
    within each group only. `block` is how many consecutive scalars are selected and permuted as
    one (`Blocks`). Only one thread may use the object at a time: it reuses scratch memory, which is
    proportional to the number of selected scalars.
    """

    def __init__(
        self,
        layout: Layout,
        rates: Sequence[Fraction],
        n: int,
        position: int,
        *,
        group: int = 0,
        block: str = "1",
    ) -> None:
        assert n >= 2
        assert 0 <= position < n
        self._n = n
        self._position = position
        self._group = group if group < n else 0
        self._blocks = None if block == "1" else Blocks(layout, block)
        self._selection = Selection(self._blocks.layout if self._blocks else layout, rates)
        self._everyone = _Group(number=0, positions=np.arange(n), own=position)
        self._words = PhiloxStreams()
        self._draws = np.empty(0, dtype=np.uint64)

    def derive(self, seed: int) -> Plan:
        """The plan of the round whose seed is `seed` (64 bits). O(selected); does not block."""
        group = self._deal(seed) if self._group else self._everyone
        self._words.begin(seed, _DARTS)
        indices = self._selection.select(self._words)
        count, n = len(indices), len(group.positions)
        if len(self._draws) < count:
            self._draws = np.empty(count + count // 4, dtype=np.uint64)
        draws = self._draws[:count]
        self._words.begin(seed, _PERMUTATIONS, group.number)
        if n > LARGEST_TABLE:
            self._words.fill(draws)
        else:
            self._words.fill_halves(draws)
        fingerprint = _fingerprint(indices, draws)
        sources, targets = source_and_target(draws, n, group.own)
        send = _route(indices, targets, group, draws)
        receive = _route(indices, sources, group, draws)
        if self._blocks is not None:
            count = self._blocks.count(indices)
            send, receive = (_of_scalars(route, self._blocks) for route in (send, receive))
        return Plan(send=send, receive=receive, selected=count, fingerprint=fingerprint)

    def derive_mean(self, seed: int) -> Plan:
        """The plan of a mean over each group. Groups and selection are those of `derive`."""
        group = self._deal(seed) if self._group else self._everyone
        self._words.begin(seed, _DARTS)
        indices = self._selection.select(self._words)
        indices = indices.copy() if self._blocks is None else self._blocks.scalars(indices)[0]
        fingerprint = (seed + int(indices.sum())) % _WORD
        return reduce_and_share(indices, group.positions, group.own, fingerprint)

    def _deal(self, seed: int) -> _Group:
        """The member's group: members are sorted by one raw word each, and then cut evenly."""
        self._words.begin(seed, _GROUPS)
        order = np.argsort(self._words.take(self._n), kind="stable")
        count = -(-self._n // self._group)
        place = int(np.flatnonzero(order == self._position)[0])
        number = ((place + 1) * count - 1) // self._n
        begin, end = self._n * number // count, self._n * (number + 1) // count
        return _Group(number=number, positions=order[begin:end], own=place - begin)


def reduce_and_share(indices: Indices, positions: Indices, own: int, fingerprint: int) -> Plan:
    """The plan of a mean, over the members at `positions`, of the values at `indices`.

    This member has place `own` in `positions`. Each member reduces one shard, in the order of
    `positions`. So each sends 2 (n-1)/n of the values, as in a ring all-reduce.
    """
    bounds = shard_bounds(len(indices), len(positions))
    begin, end = bounds[own], bounds[own + 1]
    parts, contributions = [], []
    for place, position in enumerate(positions.tolist()):
        first, last = bounds[place], bounds[place + 1]
        if place != own:
            gap = end - begin if place > own else 0
            parts += [(position, first - gap, last - gap)] if last > first else []
            contributions += [(position, 0, end - begin)] if end > begin else []
    return Plan(
        send=Route(np.concatenate((indices[:begin], indices[end:])), tuple(parts)),
        receive=Route(indices[begin:end], tuple(contributions)),
        selected=len(indices),
        fingerprint=fingerprint,
        mean=Mean(own=True, shared=True),
    )


def shard_bounds(count: int, n: int) -> list[int]:
    """The n + 1 bounds of `n` shards of `count` values."""
    return [count * place // n for place in range(n + 1)]


def everything(layout: Layout) -> Indices:
    """The index of every scalar in the flat vector, ascending."""
    places = [np.arange(e.offset, e.offset + e.size, dtype=np.int64) for e in layout.entries]
    return np.concatenate(places)


def pairs(seed: int, n: int) -> list[tuple[int, int]]:
    """For each of `n` positions, a random pair of two different positions.

    A raw word w draws the pair numbered floor(w n(n-1) / 2**64). Pairs are numbered by the first,
    then by the second.
    """
    words = PhiloxStreams()
    words.begin(seed, _PAIRS)
    drawn = [word * n * (n - 1) >> 64 for word in words.take(n).tolist()]
    numbered = [divmod(number, n - 1) for number in drawn]
    return [(first, second + (second >= first)) for first, second in numbered]


@dataclass(frozen=True)
class _Group:
    """Members among whom values are permuted: their positions in the roster, in the order dealt.

    `own` is this member's place in `positions`; `number` tells the round's groups apart.
    """

    number: int
    positions: Indices
    own: int


def _route(
    indices: Indices, peers: npt.NDArray[np.unsignedinteger], group: _Group, scratch: Words
) -> Route:
    """The route of each of `indices` to or from its peer in `peers` (places in `group`).

    It is grouped by peer, without the values that stay with the member.
    """
    if len(group.positions) <= LARGEST_TABLE:
        return _route_among_few(indices, peers, group, scratch)
    size = len(group.positions)
    order = peers.argsort(kind="stable")
    bounds = np.searchsorted(peers.take(order), np.arange(size + 1))
    first, end = bounds[group.own : group.own + 2]
    grouped = np.concatenate((indices.take(order[:first]), indices.take(order[end:])))
    bounds[group.own + 1 :] -= end - first
    some = np.flatnonzero(np.diff(bounds))
    positions, begins, ends = group.positions[some], bounds[some], bounds[some + 1]
    parts = zip(positions.tolist(), begins.tolist(), ends.tolist(), strict=True)
    return Route(grouped, tuple(parts))


def _route_among_few(
    indices: Indices, peers: npt.NDArray[np.unsignedinteger], group: _Group, scratch: Words
) -> Route:
    """Do what `_route` does, for few peers: one pass for each peer costs less than sorting.

    It works block by block, because allocating large memory costs more than the work on it.
    """
    others = [peer for peer in range(len(group.positions)) if peer != group.own]
    pieces: list[list[Indices]] = [[] for _ in others]
    room = scratch[: len(indices)].view(np.int64)
    at = 0
    for begin in range(0, len(indices), BLOCK):
        part, block = indices[begin : begin + BLOCK], peers[begin : begin + BLOCK]
        for peer, of_peer in zip(others, pieces, strict=True):
            mine = (block == peer).nonzero()[0]
            piece = room[at : at + len(mine)]
            part.take(mine, out=piece, mode="clip")
            of_peer.append(piece)
            at += len(mine)
    parts = []
    at = 0
    for peer, of_peer in zip(others, pieces, strict=True):
        count = sum(map(len, of_peer))
        if count:
            parts.append((int(group.positions[peer]), at, at + count))
            at += count
    flat = [piece for of_peer in pieces for piece in of_peer]
    return Route(np.concatenate(flat) if flat else indices[:0].copy(), tuple(parts))


def _of_scalars(route: Route, blocks: Blocks) -> Route:
    """The route of the scalars in a route of blocks."""
    indices, ends = blocks.scalars(route.indices)
    parts = []
    begin = 0
    for peer, _, last in route.parts:  # one after the other
        end = int(ends[last - 1])
        parts.append((peer, begin, end))
        begin = end
    return Route(indices, tuple(parts))


def _fingerprint(indices: Indices, draws: Words) -> int:
    """The sum of (index + 1) * draw, modulo 2**64."""
    products = int(np.dot(indices.view(np.uint64), draws))
    return (products + int(draws.sum(dtype=np.uint64))) % _WORD
