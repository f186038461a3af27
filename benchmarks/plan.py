"""Deriving a plan against drawing a Bernoulli mask over all parameters, alternating in one run.

    python -m benchmarks.plan

The mask side is what a dense implementation does each round: float32 `Generator.random(d)`,
compare, `nonzero`, argsort of selected x N for the permutations.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.record import record, run
from washp2p.plan.plan import Deriver
from washp2p.protocol.layout import Entry, Layout, Slot, aligned
from washp2p.protocol.rates import layer_rates

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


def against_a_mask() -> None:
    """Pairs at two sizes."""
    generator = np.random.default_rng(0)
    rows = []
    for size, parameters in ((11_000_000, 62), (138_000_000, 32)):
        deriver = Deriver(layout(size, parameters), layer_rates("constant", P, 1), N, 2)
        deriver.derive(0)
        pairs = [
            (timed(partial(deriver.derive, seed)), timed(partial(mask, size, generator)))
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


def move(flat: torch.Tensor, send: torch.Tensor, receive: torch.Tensor) -> None:
    """One round's gather and scatter."""
    flat.index_put_((receive,), flat.index_select(0, send))


def against_growth() -> None:
    """Nanoseconds a selected value: over how many there are, over N, and at d = 1e9."""
    rows = []

    def measure(what: str, size: int, p: float, n: int) -> tuple[float, Deriver]:
        deriver = Deriver(layout(size, 62), layer_rates("constant", p, 1), n, 2)
        selected = deriver.derive(0).selected
        took = median(timed(partial(deriver.derive, s)) for s in range(1, REPEATS + 1))
        each = 1e6 * took / selected
        rows.append([what, f"{size / 1e6:.0f} M", p, n, selected, f"{took:.2f}", f"{each:.0f}"])
        return each, deriver

    for p in (0.0001, 0.001, 0.01, 0.05):
        measure("linear in selected", 11_000_000, p, N)
    few, _ = measure("members", 11_000_000, 0.01, 16)
    many, _ = measure("members", 11_000_000, 0.01, 1024)
    size = 1_000_000_000
    each, deriver = measure("a large model", size, P, N)
    flat = torch.zeros(size)
    touched = []
    for seed in range(5):
        plan = deriver.derive(seed)
        send, receive = (torch.from_numpy(r.indices) for r in (plan.send, plan.receive))
        touched.append(timed(partial(move, flat, send, receive)))
    ours = each * plan.selected / 1e6
    record(
        "plan-growth",
        "What a plan costs as things grow",
        ["what", "d", "p", "N", "selected", "ms", "ns a selected value"],
        rows,
        f"Medians of {REPEATS}. N = 1,024 against N = 16: {many / few:.2f}x a value (bar 2x). At "
        f"d = 1e9 gathering and scattering float32 at the plan's indices takes "
        f"{median(touched):.1f} ms: the plan is {ours / median(touched):.2f}x that (bar 3x). Up to "
        "7 members all permutations are in a table; beyond, a permutation is a keyed shuffle.",
    )


def main() -> None:
    """Measure and record both."""
    torch.set_num_threads(1)
    against_a_mask()
    against_growth()


if __name__ == "__main__":
    sys.exit(run(main, takes="a few minutes"))
