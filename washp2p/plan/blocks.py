"""Blocks: runs of consecutive scalars that a round selects and permutes as one.

A parameter of s scalars has ceil(s / B) blocks of B scalars, in memory order; its last one may be
shorter. Padding is in no block. With `row`, B is the number of scalars that one first index of the
parameter has, such as one filter of a convolution. A block is selected with its layer's probability
p_l, so each of its scalars is, too. With B = 1 a block is a scalar: the paper's selection.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from washp2p.protocol.layout import Entry, Layout

Indices = npt.NDArray[np.int64]
ROW = "row"
FEW = 8
"""Scalars a block, below which it is faster to write those of all blocks that are first, and so on.
"""


class Blocks:
    """The blocks of `layout`, numbered from 0 in flat order. `block` is the option `--block`.

    >>> entry = Entry(name="w", shape=(5,), stride=(1,), layer=0, offset=16)
    >>> blocks = Blocks(Layout((entry,), ()), "2")
    >>> blocks.layout.size
    3
    >>> blocks.scalars(np.array([0, 2]))[0].tolist()
    [16, 17, 20]
    """

    def __init__(self, layout: Layout, block: str) -> None:
        entries = layout.entries
        lengths = [_length(entry, block) for entry in entries]
        counts = [-(-e.size // length) for e, length in zip(entries, lengths, strict=True)]
        ends = np.cumsum(counts)
        firsts = ends - counts
        self.layout = Layout(
            tuple(map(_as_scalars, entries, firsts.tolist(), counts)), layout.slots
        )
        """A layout with a scalar for each block, and no padding."""
        self._ends = ends
        self._lengths = np.array(lengths)
        offsets = np.array([entry.offset for entry in entries])
        self._shifts = offsets - firsts * self._lengths
        self._bounds = offsets + np.array([entry.size for entry in entries])

    def scalars(self, blocks: Indices) -> tuple[Indices, Indices]:
        """The scalars of some blocks: their indices in the flat vector, block after block.

        Also returns, for each block, the number of scalars up to its end.
        """
        starts, lengths = self._spans(blocks)
        ends = lengths.cumsum()
        if not len(blocks):
            return ends, ends
        longest = int(lengths.max())
        if longest * len(blocks) > ends[-1]:  # some are shorter
            places = (starts - ends + lengths).repeat(lengths)
            places += np.arange(len(places))
            return places, ends
        grid = np.empty((len(blocks), longest), dtype=np.int64)
        if longest < FEW:
            for column in range(longest):
                np.add(starts, column, out=grid[:, column])
        else:
            np.add(starts[:, None], np.arange(longest), out=grid)
        return grid.ravel(), ends

    def count(self, blocks: Indices) -> int:
        """How many scalars some blocks have in all."""
        return int(self._spans(blocks)[1].sum())

    def _spans(self, blocks: Indices) -> tuple[Indices, Indices]:
        """The index of each block's first scalar, and its number of scalars."""
        which = np.searchsorted(self._ends, blocks, side="right")
        lengths = self._lengths.take(which)
        starts = blocks * lengths
        starts += self._shifts.take(which)
        np.minimum(lengths, self._bounds.take(which) - starts, out=lengths)
        return starts, lengths


def _length(entry: Entry, block: str) -> int:
    """B for a parameter."""
    if block != ROW:
        return int(block)
    return max(1, entry.size // max(1, entry.shape[0])) if entry.shape else 1


def _as_scalars(entry: Entry, first: int, count: int) -> Entry:
    return Entry(name=entry.name, shape=(count,), stride=(1,), layer=entry.layer, offset=first)
