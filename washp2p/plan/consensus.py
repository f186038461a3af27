"""An estimate of how far members are apart, from the values they exchange anyway. No I/O.

A scalar that member n receives comes from another member, drawn uniformly. A scalar of layer l is
selected with probability p_l. Let s_n be what n held, and r_n what it received. Over members and
draws, the expectation of

1/2 sum over received i of (r_n[i] - s_n[i])^2 / p_l

is 1/N sum_n |theta_n - mean|^2. That is the population's mean squared distance from its mean, over
all layers that are shuffled at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from washp2p.protocol.layout import Layout

WEIGHT = 0.2
"""The weight of the newest sample in the moving average `distance`."""


class Consensus:
    """One member's estimate, updated from the values of a round now and then.

    `rates` are p_l by layer, and `group` is the largest size of a group (0: no groups).

    >>> from washp2p.protocol.layout import Entry, Layout, Slot
    >>> entry = Entry(name="w", shape=(4,), stride=(1,), layer=0, offset=0)
    >>> consensus = Consensus(Layout((entry,), (Slot(name="param", dtype="float32"),)), [0.5])
    >>> consensus.observe(np.array([1, 3]), np.array([1.0, 1.0]), np.array([1.0, 3.0]))
    >>> consensus.finish(n=2)
    >>> consensus.distance  # 1/2 * 2^2 / 0.5
    4.0
    """

    def __init__(self, layout: Layout, rates: Sequence[Fraction], group: int = 0) -> None:
        self._group = group
        self._ends = np.array([entry.offset + entry.size for entry in layout.entries])
        chances = np.array([float(rates[entry.layer]) for entry in layout.entries])
        self._weights = np.divide(0.5, chances, out=np.zeros_like(chances), where=chances > 0)
        self._sample = 0.0
        self.distance = -1.0
        """Mean squared distance from the mean, over shuffled layers. Negative before the first."""

    def observe(
        self,
        indices: npt.NDArray[np.int64],
        held: npt.NDArray[np.floating],
        received: npt.NDArray[np.floating],
    ) -> None:
        """Add scalars of a round: what the member `held` at `indices`, and what it `received`."""
        weights = self._weights[np.searchsorted(self._ends, indices, side="right")]
        self._sample += float(weights @ np.square(received - held, dtype=np.float64))

    def discard(self) -> None:
        """Discard what this round has added, because some of its values will not arrive."""
        self._sample = 0.0

    def finish(self, n: int) -> None:
        """Update `distance` once all values of a round of `n` members have been added."""
        groups = -(-n // self._group) if self._group else 1
        sample = self._sample * (n - 1) / (n - groups)
        first = self.distance < 0
        self.distance += (sample - self.distance) * (1.0 if first else WEIGHT)
        self._sample = 0.0
