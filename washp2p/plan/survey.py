"""Surveys: how far members are apart, measured now and then (WASH, figures 2 and 4). No I/O.

A survey looks at a fixed random sample of scalars, or at all of them. Each member compares all
members' values in its shard of the sample. The members' results add up to the population's mean
squared distance from its mean, for each quarter of the parameters in flat order. In a survey a
member sends (N-1)/N of the sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from washp2p.plan.philox import PhiloxStreams
from washp2p.plan.plan import everything, reduce_and_share, shard_bounds
from washp2p.protocol.messages.fields import QUARTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.plan.plan import Indices, Plan
    from washp2p.protocol.layout import Layout

SAMPLE = 1024
"""Scalars to draw from each quarter. All scalars of a quarter with no more are taken."""
_STREAM = 4


class Survey:
    """What the member at `position` among `n` does in a survey.

    If `exact`, the survey looks at all scalars. Else it looks at a sample that is drawn from the
    run's `seed`, and is the same in all surveys of the run.
    """

    def __init__(self, layout: Layout, seed: int, n: int, position: int, *, exact: bool) -> None:
        chosen = np.arange(layout.values) if exact else sample(layout.values, seed)
        indices = everything(layout)[chosen]
        fingerprint = 2 * n + exact
        self.plan: Plan = reduce_and_share(indices, np.arange(n), position, fingerprint)
        """A survey exchanges only the first leg of this plan, and takes no mean."""
        quarters = chosen * QUARTERS // layout.values
        begin, end = shard_bounds(len(chosen), n)[position : position + 2]
        self._quarters = quarters[begin:end]
        counts = np.bincount(quarters, minlength=QUARTERS)
        self._scales = np.divide(
            _sizes(layout.values), counts, out=np.zeros(QUARTERS), where=counts > 0
        )

    def squares(self, held: Sequence[npt.NDArray[np.floating]]) -> list[float]:
        """The shard's part of 1/N sum_n |theta_n - mean|^2, by quarter. `held` has each
        member's values in the shard.
        """
        total = np.zeros(len(self._quarters))
        for values in held:
            total += values
        mean = total / len(held)
        spread = np.zeros(len(self._quarters))
        for values in held:
            spread += (values - mean) ** 2
        found = np.bincount(self._quarters, spread / len(held), minlength=QUARTERS)
        return [float(value) for value in found * self._scales]


def sample(values: int, seed: int) -> Indices:
    """The numbers of the scalars to compare, ascending: up to SAMPLE of each quarter."""
    words = PhiloxStreams()
    words.begin(seed, _STREAM)
    ends = np.cumsum(_sizes(values)).tolist()
    chosen = []
    for begin, end in zip([0, *ends], ends, strict=False):
        drawn = [begin + (word * (end - begin) >> 64) for word in words.take(SAMPLE).tolist()]
        few = end - begin <= SAMPLE
        chosen.append(np.arange(begin, end) if few else np.unique(drawn))
    return np.concatenate(chosen).astype(np.int64)


def _sizes(values: int) -> npt.NDArray[np.int64]:
    """The number of scalars in each quarter. Of d = `values` scalars, i is in quarter 4 i // d."""
    bounds = [-(-values * quarter // QUARTERS) for quarter in range(QUARTERS + 1)]
    return np.diff(bounds)
