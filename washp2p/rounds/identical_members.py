"""Finds members that are identical, because they have the same seed and the same batches.

It compares members' values where this member's own have changed since the start. It stops when each
peer is known to differ or to be identical, or after LOOKS rounds. It remembers at most MOST initial
values. No sockets, no tensors.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from washp2p.protocol.roster import MemberId

MOST = 1 << 22
ENOUGH = 64
"""If so many changed values are equal, in at least ROUNDS rounds, a peer counts as identical."""
ROUNDS = 3
LOOKS = 1000
"""Rounds after which the search ends. The average shows identical members in any case."""


class Likeness:
    """Compares received parameters with this member's. `vector` has this member's at the start."""

    def __init__(self, vector: npt.NDArray[np.floating]) -> None:
        self._every = -(-len(vector) // MOST)
        self._initial: npt.NDArray[np.floating] | None = vector[:: self._every].copy()
        self._looks = 0
        self._values: Counter[MemberId] = Counter()
        self._rounds: Counter[MemberId] = Counter()
        self._told_apart: set[MemberId] = set()
        self.same: set[MemberId] = set()
        """Peers that were found identical to this member."""

    @property
    def watches(self) -> bool:
        """Whether received values must still be passed to `observe`."""
        return self._initial is not None

    def observe(
        self,
        sender: MemberId,
        indices: npt.NDArray[np.int64],
        own: npt.NDArray[np.floating],
        received: npt.NDArray[np.floating],
    ) -> None:
        """Compare values of `sender` at `indices` of the flat vector with this member's `own`."""
        if self._initial is None or sender in self._told_apart or sender in self.same:
            return
        known = indices % self._every == 0
        mine, theirs = own[known], received[known]
        changed = mine != self._initial[indices[known] // self._every]
        if not changed.any():
            return
        if (mine[changed] != theirs[changed]).any():
            self._told_apart.add(sender)
            return
        self._values[sender] += int(changed.sum())
        self._rounds[sender] += 1
        if self._values[sender] >= ENOUGH and self._rounds[sender] >= ROUNDS:
            self.same.add(sender)

    def conclude(self, peers: set[MemberId]) -> None:
        """Conclude a round. Stop once each of `peers` is told apart or found identical, or after
        LOOKS rounds.
        """
        self._looks += 1
        if (peers and peers <= self._told_apart | self.same) or self._looks >= LOOKS:
            self._initial = None
