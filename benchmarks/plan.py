"""Deriving a plan against drawing a Bernoulli mask over all parameters, alternating in one run.

    python -m benchmarks.plan

The mask side is what a dense implementation does each round: float32 `Generator.random(d)`,
compare, `nonzero`, argsort of selected x N for the permutations.
"""

from __future__ import annotations

import time
from statistics import median, quantiles
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.record import record
from washp2p.layout import Entry, Layout, Slot, aligned
from washp2p.plan import Deriver
from washp2p.rates import layer_rates

if TYPE_CHECKING:
    from collections.abc import Callable

N, P = 5, 0.001
REPEATS = 15


def layout(size: int, parameters: int) -> Layout:
    """One layer, `size` scalars in equal parameters."""
    entries = []
    offset = 0
    for number in range(parameters):
        count = size // parameters
        offset = aligned(offset, 4)
        entries.append(Entry(name=str(number), shape=(count,), stride=(1,), layer=0, offset=offset))
        offset += count
    return Layout(tuple(entries), (Slot(name="param", dtype="float32"),))


def mask(size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The dense derivation."""
    selected = np.nonzero(generator.random(size, dtype=np.float32) < P)[0]
    return selected, np.argsort(generator.random((len(selected), N)), axis=1)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Measure and record."""
    generator = np.random.default_rng(0)
    rows = []
    for size, parameters in ((11_000_000, 62), (138_000_000, 32)):
        deriver = Deriver(layout(size, parameters), layer_rates("constant", P, 1), N, 2)
        deriver.derive(0)
        pairs = [
            (timed(lambda s=seed, d=deriver: d.derive(s)), timed(lambda s=size: mask(s, generator)))
            for seed in range(REPEATS)
        ]
        ours, dense = ([pair[k] for pair in pairs] for k in (0, 1))
        ratio = [b / a for a, b in pairs]
        low, _, high = quantiles(ratio, n=4)
        rows.append(
            [
                f"{size / 1e6:.0f} M",
                deriver.derive(0).selected,
                f"{median(ours):.2f}",
                f"{median(dense):.1f}",
                f"{median(ratio):.0f}x",
                f"{low:.0f} to {high:.0f}x",
            ]
        )
    record(
        "plan",
        "Deriving a plan against a Bernoulli mask",
        ["d", "selected", "plan, ms", "mask, ms", "ratio, median", "quartiles"],
        rows,
        f"p = {P}, N = {N}, {REPEATS} pairs, alternating in one run; one member's whole plan (both "
        "routes, fingerprint) against the mask and the permutations alone.",
    )


if __name__ == "__main__":
    main()
