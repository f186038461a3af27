"""Tells which scalars a newer round has already written when an older round's values arrive.

Only writes of rounds newer than the oldest outstanding round are remembered. So the memory needed
depends on how many values those rounds wrote, not on the model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class WriteOrder:
    """Remembers for each scalar the newest round that wrote it, until `forget` drops that round.

    >>> writes = WriteOrder()
    >>> writes.note(np.array([10, 20]), 7)
    >>> writes.free(np.array([10, 15]), 6).tolist()  # round 6 comes late
    [False, True]
    """

    def __init__(self) -> None:
        self._indices: Indices = np.empty(0, dtype=np.int64)
        self._rounds: Indices = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def note(self, indices: Indices, number: int) -> None:
        """Note that round `number` has written the scalars at `indices` (each once, in any
        order).
        """
        new = np.sort(indices)
        at = np.searchsorted(self._indices, new)
        known = np.zeros(len(new), dtype=bool)
        inside = at < len(self._indices)
        known[inside] = self._indices[at[inside]] == new[inside]
        places = at[known]
        self._rounds[places] = np.maximum(self._rounds[places], number)
        self._indices = np.insert(self._indices, at[~known], new[~known])
        self._rounds = np.insert(self._rounds, at[~known], number)

    def free(self, indices: Indices, number: int) -> npt.NDArray[np.bool_]:
        """For each of `indices`: True unless a round newer than `number` has written its scalar."""
        at = np.searchsorted(self._indices, indices)
        result = np.ones(len(indices), dtype=bool)
        inside = at < len(self._indices)
        at = at[inside]
        result[inside] = (self._indices[at] != indices[inside]) | (self._rounds[at] <= number)
        return result

    def forget(self, number: int) -> None:
        """Forget writes of rounds up to `number`, the oldest that may still be outstanding."""
        kept = self._rounds > number
        self._indices, self._rounds = self._indices[kept], self._rounds[kept]
