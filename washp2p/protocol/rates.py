"""Selection rates by layer (equation 6), and the payload expected from them.

Rates are exact fractions: plans are derived from them and must not depend on a machine's rounding.
The module imports no NumPy, so that the coordinator can use it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from washp2p.protocol.layout import Layout

SCHEDULES = ("decreasing", "constant", "increasing")


def layer_rates(schedule: str, p: float, layers: int) -> tuple[Fraction, ...]:
    """p_l for every layer l of `layers`.

    `decreasing` is equation 6, p (1 - l / (L - 1)): the last layer is never shuffled.
    `increasing` is its mirror image, `constant` is p everywhere. With one layer p_0 = p.

    >>> [float(rate) for rate in layer_rates("decreasing", 0.5, 5)]
    [0.5, 0.375, 0.25, 0.125, 0.0]
    """
    assert schedule in SCHEDULES
    base = Fraction(p)
    if layers == 1 or schedule == "constant":
        return (base,) * layers
    falling = tuple(base * Fraction(layers - 1 - layer, layers - 1) for layer in range(layers))
    return falling if schedule == "decreasing" else falling[::-1]


def expected_selected(layout: Layout, rates: tuple[Fraction, ...]) -> float:
    """The expected number of scalars selected in a round: the sum over layers of p_l d_l."""
    return float(sum(rates[entry.layer] * entry.size for entry in layout.entries))


def expected_payload(layout: Layout, rates: tuple[Fraction, ...], n: int, group: int = 0) -> float:
    """Expected bytes a member sends a round: (N-1)/N * sum_l p_l d_l * bytes of a scalar's
    slots.

    `group` is the largest size of a group; 0 means one group of all. A member is in a group of g
    members with probability g/N, and then sends (g-1)/g of what is selected. Over all groups the
    factor (N-1)/N becomes (N - groups)/N.
    """
    groups = -(-n // group) if group else 1
    return (n - groups) / n * expected_selected(layout, rates) * layout.scalar_bytes


def paper_payload(layout: Layout, schedule: str, p: float) -> float:
    """Bytes per round by the paper's rule: p d values, or p d/2 if rates fall or rise with
    depth.

    The rule assumes layers of equal size and a large N. `expected_payload` assumes neither.
    """
    return p * layout.values * layout.scalar_bytes / (1 if schedule == "constant" else 2)


def parameter_payload(layout: Layout) -> float:
    """Bytes of all d parameters."""
    return layout.values * layout.slots[0].item_bytes


def all_reduce_payload(layout: Layout, n: int) -> float:
    """Bytes a member sends in a ring all-reduce of all parameters: 2 (N-1)/N d."""
    return 2 * (n - 1) / n * parameter_payload(layout)


def papa_payload(layout: Layout, period: int = 10) -> float:
    """Bytes per round with PAPA as its paper counts them: all d parameters every `period` steps."""
    return parameter_payload(layout) / period


def papa_all_reduce(layout: Layout, n: int, period: int = 10) -> float:
    """Bytes per round that a member sends with PAPA by ring all-reduce: 2 (N-1)/N d / `period`."""
    return all_reduce_payload(layout, n) / period
