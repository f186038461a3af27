"""The estimate of how far members are apart is right on average, whatever layers and rates."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.layouts import make_layout
from washp2p.plan.consensus import Consensus
from washp2p.plan.plan import Deriver
from washp2p.protocol.rates import layer_rates


@pytest.mark.parametrize(
    ("n", "group", "block"),
    [(2, 0, "1"), (5, 0, "1"), (9, 0, "1"), (7, 3, "1"), (5, 0, "4"), (6, 0, "row")],
)
@pytest.mark.parametrize("schedule", ["decreasing", "constant"])
def test_it_is_the_mean_squared_distance_from_the_mean(n, group, block, schedule):
    layout = make_layout([[40, 8], [300], [120, 10], [60]], rows=True)
    rates = layer_rates(schedule, 0.2, layout.layers)
    generator = np.random.default_rng(n)
    thetas = generator.normal(size=(n, layout.size)) * generator.uniform(0.1, 3, layout.size)
    shuffled = np.concatenate(
        [np.arange(e.offset, e.offset + e.size) for e in layout.entries if rates[e.layer]]
    )
    apart = thetas[:, shuffled] - thetas[:, shuffled].mean(0)
    expected = np.square(apart).sum() / n
    samples = []
    for member in range(n):
        deriver = Deriver(layout, rates, n, member, group=group, block=block)
        for seed in range(400):
            route = deriver.derive(seed).receive
            consensus = Consensus(layout, rates, group)
            for sender, begin, end in route.parts:
                indices = route.indices[begin:end]
                consensus.observe(indices, thetas[member, indices], thetas[sender, indices])
            consensus.finish(n)
            samples.append(consensus.distance)
    assert np.mean(samples) == pytest.approx(expected, rel=0.05)


def test_a_round_that_is_not_whole_tells_nothing():
    consensus = Consensus(make_layout([[4]]), [1])
    consensus.observe(np.array([0]), np.array([0.0]), np.array([2.0]))
    consensus.discard()
    assert consensus.distance < 0
    consensus.observe(np.array([0]), np.array([0.0]), np.array([4.0]))
    consensus.finish(2)
    assert consensus.distance == 8
