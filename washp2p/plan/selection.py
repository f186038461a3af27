"""The selection: which scalars a round shuffles (WASH, section 3, equation 3).

Selecting takes time proportional to the number of selected scalars. Darts are thrown at a line. On
this line every scalar of layer l owns a stretch of length proportional to h_l = -ln(1 - p_l). The
number of darts is Poisson with mean sum_l d_l h_l, where layer l has d_l scalars. So the number of
darts that hit one scalar is Poisson(h_l), independently of all other scalars. A scalar is hit at
all with probability 1 - exp(-h_l) = p_l: equation 3, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from washp2p.plan.philox import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from washp2p.plan.philox import PhiloxStreams, Words
    from washp2p.protocol.layout import Layout

Indices = npt.NDArray[np.int64]

_WORD = 1 << 64
_FEW = 512  # darts a stretch, below which one division of arrays beats many by a number


class Selection:
    """Selects scalars. Small tables are made once for a layout and its rates p_l by layer."""

    def __init__(self, layout: Layout, rates: Sequence[Fraction]) -> None:
        self._stretches, mean = _stretches(layout, rates)
        self._ends, self._begins, self._widths, self._offsets = (
            np.array([getattr(s, name) for s in self._stretches], dtype=np.uint64)
            for name in ("end", "begin", "width", "offset")
        )
        self._certain = sum(s.size for s in self._stretches if s.certain)
        self._fewest, self._thresholds = _poisson_thresholds(mean)
        self._scratch = tuple(np.empty(0, dtype=np.uint64) for _ in range(2))

    def select(self, words: PhiloxStreams) -> Indices:
        """The indices of the flat vector that `words` select, ascending.

        They are scratch memory, overwritten by the next `select`.
        """
        word = words.take(1)[0]
        count = self._fewest + int(np.searchsorted(self._thresholds, word, side="right"))
        most = count + self._certain
        if len(self._scratch[0]) < most:
            self._scratch = tuple(np.empty(most + most // 4, dtype=np.uint64) for _ in range(2))
        darts, found = self._scratch[0][:count], self._scratch[1]
        words.fill(darts)
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
        for begin in range(0, at, BLOCK):
            kept = hits[begin : begin + BLOCK][first[begin : begin + BLOCK]]
            hits[size : size + len(kept)] = kept
            size += len(kept)
        return hits[:size]

    def _place_at_once(self, darts: Words, cuts: npt.NDArray[np.intp], out: Words) -> int:
        """Write to `out` the index of the scalar that each dart hits. Returns the number of hits.

        `darts` are sorted; stretch k ends before dart `cuts[k]`. All darts are handled at once,
        which is fast for few darts on many stretches.
        """
        counts = np.diff(cuts, prepend=0)
        hit = darts[: cuts[-1] if len(cuts) else 0]
        hits = out[: len(hit)]
        np.subtract(hit, self._begins.repeat(counts), out=hits)
        np.floor_divide(hits, self._widths.repeat(counts), out=hits)
        hits += self._offsets.repeat(counts)
        return len(hits)

    def _place_by_stretch(self, darts: Words, cuts: list[int], out: Words) -> int:
        """Do what `_place_at_once` does stretch by stretch, which is fast for many darts.

        In a stretch with p_l = 1 every scalar counts as hit, without darts.
        """
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
class _Stretch:
    """A parameter's interval on the line of darts: each scalar owns `width` of its 2**64 points.

    `certain` means p_l = 1: the interval is empty, and all scalars are selected.
    """

    offset: np.uint64
    size: int
    begin: np.uint64
    width: np.uint64
    end: int
    certain: bool


def _stretches(layout: Layout, rates: Sequence[Fraction]) -> tuple[list[_Stretch], Decimal]:
    """The intervals of all parameters that can be selected, and the mean number of darts."""
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
    """`low`, and thresholds floor(2**64 P(M <= m)) for m from `low` on; M is Poisson with `mean`.

    A raw word draws M: `low` plus the number of thresholds <= the word. Thresholds below `low` are
    all 0. Integer weights are computed outward from the mode and divided by their sum, so no
    exponential is needed. Values of M without a weight have less than 2**-64 of the mass.
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
