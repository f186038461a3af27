"""The laws of section 3: what is selected, how it is permuted, and that all members agree."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.support.layouts import make_layout
from washp2p.plan import selection
from washp2p.plan.blocks import Blocks
from washp2p.plan.permutations import keyed
from washp2p.plan.philox import PhiloxStreams
from washp2p.plan.plan import Deriver
from washp2p.protocol.layout import Entry, Layout
from washp2p.protocol.rates import SCHEDULES, expected_payload, expected_selected, layer_rates
from washp2p.protocol.version import DERIVATION
from workers.simulation.reference import Selection, block_of, deal, permutations_of

GOLDEN = Path(__file__).parent / "plans.json"

seeds = st.integers(0, 2**64 - 1)
layouts = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=5
).map(partial(make_layout, rows=True))
populations = st.integers(2, 12)
groups = st.sampled_from([0, 2, 3, 5, 8])
blocks = st.sampled_from(["1", "1", "2", "7", "16", "row"])
probabilities = st.sampled_from([0.0, 1e-4, 0.3, 1.0])


def plans(layout, rates, n, seed, group=0, block="1"):
    return [
        Deriver(layout, rates, n, position, group=group, block=block).derive(seed)
        for position in range(n)
    ]


def part(route, position):
    for peer, begin, end in route.parts:
        if peer == position:
            return route.indices[begin:end]
    return route.indices[:0]


def shuffle(theta, round_plans):
    """One lockstep round on rows of `theta`, by the plans alone."""
    after = theta.copy()
    for receiver, plan in enumerate(round_plans):
        for sender, sent in enumerate(round_plans):
            after[receiver, part(plan.receive, sender)] = theta[sender, part(sent.send, receiver)]
    return after


@settings(max_examples=60, deadline=None)
@given(layouts, populations, probabilities, st.sampled_from(SCHEDULES), seeds, groups, blocks)
def test_what_one_sends_is_what_the_other_expects(layout, n, p, schedule, seed, group, block):
    round_plans = plans(layout, layer_rates(schedule, p, layout.layers), n, seed, group, block)
    for me, mine in enumerate(round_plans):
        assert all(peer != me and begin < end for peer, begin, end in mine.send.parts)
        for route in (mine.send, mine.receive):
            assert sum(end - begin for _, begin, end in route.parts) == len(route.indices)
        for other, theirs in enumerate(round_plans):
            np.testing.assert_array_equal(part(mine.send, other), part(theirs.receive, me))
            if part(mine.send, other).size:
                assert mine.fingerprint == theirs.fingerprint
    assert len({plan.selected for plan in round_plans}) == 1
    if not group:
        assert len({plan.fingerprint for plan in round_plans}) == 1
    else:
        for plan in round_plans:
            peers = {peer for route in (plan.send, plan.receive) for peer, _, _ in route.parts}
            assert len(peers) < group


@settings(max_examples=60, deadline=None)
@given(layouts, populations, probabilities, st.sampled_from(SCHEDULES), seeds, groups, blocks)
def test_values_are_permuted_and_consensus_distance_is_kept(
    layout, n, p, schedule, seed, group, block
):
    theta = np.random.default_rng(0).standard_normal((n, layout.size))
    rates = layer_rates(schedule, p, layout.layers)
    after = shuffle(theta, plans(layout, rates, n, seed, group, block))
    np.testing.assert_array_equal(np.sort(after, axis=0), np.sort(theta, axis=0))
    distances = [((rows - rows.mean(axis=0)) ** 2).sum() for rows in (theta, after)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-12)  # equation 5


@settings(max_examples=40, deadline=None)
@given(layouts, st.integers(2, 9), st.sampled_from([1e-4, 0.02, 0.3, 1.0]), seeds, groups, blocks)
def test_plan_equals_the_reference_derivation(layout, n, p, seed, group, block):
    rates = layer_rates("decreasing", p, layout.layers)
    lengths = [e.size // e.shape[0] if block == "row" else int(block) for e in layout.entries]
    numbers = [-(-e.size // b) for e, b in zip(layout.entries, lengths, strict=True)]
    rated = [(k, rates[e.layer]) for k, e in zip(numbers, layout.entries, strict=True)]
    sizes = [(e.size, b) for e, b in zip(layout.entries, lengths, strict=True)]
    selected = [block_of(number, sizes) for number in Selection(rated).draw(seed)]
    places = np.concatenate([np.arange(e.offset, e.offset + e.size) for e in layout.entries])
    theta = np.arange(n * layout.size).reshape(n, -1)
    expected = theta.copy()
    for number, members in enumerate(deal(seed, n, group)):
        images = permutations_of(seed, number, len(members), len(selected))
        for i, image in [
            (i, image) for run, image in zip(selected, images, strict=True) for i in run
        ]:
            sources = [members[k] for k in image]
            expected[members, places[i]] = theta[sources, places[i]]
    after = shuffle(theta, plans(layout, rates, n, seed, group, block))
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.3, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_selection_rates_by_layer(p, schedule):
    layout = make_layout([[7000, 64], [3000], [129, 1], [4000], [2000, 10]])
    rates = layer_rates(schedule, p, layout.layers)
    deriver = Selected(layout, rates)
    rounds = 400
    counts = np.zeros(layout.size, dtype=int)
    for seed in range(rounds):
        counts[deriver.draw(seed)] += 1
    for layer, rate in enumerate(map(float, rates)):
        entries = [e for e in layout.entries if e.layer == layer]
        hits = sum(counts[e.offset : e.offset + e.size].sum() for e in entries)
        trials = rounds * sum(e.size for e in entries)
        assert abs(hits - rate * trials) <= 5 * sqrt(trials * rate * (1 - rate)) + 1e-9
        if p == 0.3 and 0 < rate < 1 and trials > rounds * 1000:
            each = np.concatenate([counts[e.offset : e.offset + e.size] for e in entries])
            spread = each.var() / (rounds * rate * (1 - rate))  # binomial, scalar by scalar
            assert abs(spread - 1) < 5 * sqrt(2 / len(each))
    padding = np.ones(layout.size, dtype=bool)
    for e in layout.entries:
        padding[e.offset : e.offset + e.size] = False
    assert not counts[padding].any()


class Selected:
    """All selected places of one round after another."""

    def __init__(self, layout, rates):
        self._selection = selection.Selection(layout, rates)
        self._words = PhiloxStreams()

    def draw(self, seed):
        self._words.begin(seed, 0)
        return self._selection.select(self._words).copy()


def test_selections_of_neighbours_are_independent():
    layout = make_layout([[20000]])
    chosen = np.zeros((300, 20000), dtype=bool)
    selected = Selected(layout, layer_rates("constant", 0.3, 1))
    for seed in range(300):
        chosen[seed, selected.draw(seed)] = True
    for lag in (1, 2, 7):
        both = (chosen[:, lag:] & chosen[:, :-lag]).sum()
        trials = 300 * (20000 - lag)
        assert abs(both - 0.09 * trials) < 5 * sqrt(trials * 0.09 * 0.91 * 2)


@pytest.mark.parametrize("n", [3, 4])
def test_permutations_are_uniform(n):
    layout = make_layout([[30000]])
    rates = layer_rates("constant", 1.0, 1)
    theta = np.tile(np.arange(n)[:, None], (1, layout.size))
    codes = np.concatenate(
        [n ** np.arange(n) @ shuffle(theta, plans(layout, rates, n, seed)) for seed in (1, 2)]
    )
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == {3: 6, 4: 24}[n]
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [3, 4, 5])
def test_keyed_permutations_are_uniform(n):
    """The derivation for more than seven members, on rosters small enough to count them all."""
    words = np.random.Philox(key=n).random_raw(200_000)
    images = [keyed(words, n, position)[0] for position in range(n)]
    codes = sum(image.astype(int) * n**k for k, image in enumerate(images))
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == {3: 6, 4: 24, 5: 120}[n]
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [8, 12])
def test_large_rosters_permute_uniformly_by_pairs(n):
    layout = make_layout([[40000]])
    rates = layer_rates("constant", 1.0, 1)
    theta = np.tile(np.arange(n)[:, None], (1, layout.size))
    after = shuffle(theta, plans(layout, rates, n, 5))
    np.testing.assert_array_equal(np.sort(after, axis=0), theta)
    for a, b in ((0, 1), (2, n - 1), (n - 2, 3)):
        pairs = np.bincount(after[a] * n + after[b], minlength=n * n).reshape(n, n)
        assert stats.chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue > 1e-4
    fixed = np.bincount((after == theta).sum(axis=0), minlength=4)[:4] / layout.size
    np.testing.assert_allclose(fixed, [0.3679, 0.3679, 0.1839, 0.0613], atol=0.012)


def test_cost_depends_on_what_is_selected_not_on_the_model():
    peaks = {}
    for size, p in ((10**6, 1e-3), (10**9, 1e-6)):
        deriver = Deriver(make_layout([[size]]), layer_rates("constant", p, 1), 5, 0)
        tracemalloc.start()
        selected = deriver.derive(1).selected
        peaks[size] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 850 < selected < 1150
        assert peaks[size] < 200 * selected + 20_000
    assert peaks[10**9] < 1.5 * peaks[10**6]


@settings(max_examples=30, deadline=None)
@given(layouts.filter(lambda layout: layout.layers > 1), populations, seeds)
def test_last_layer_is_never_touched_under_decreasing(layout, n, seed):
    last = min(e.offset for e in layout.entries if e.layer == layout.layers - 1)
    for plan in plans(layout, layer_rates("decreasing", 1.0, layout.layers), n, seed):
        assert not (plan.send.indices >= last).any()


def test_p_one_selects_everything_and_p_zero_nothing():
    layout = make_layout([[10, 3], [5]])
    everything = Deriver(layout, layer_rates("constant", 1.0, 2), 3, 0).derive(9)
    assert everything.selected == layout.values
    nothing = Deriver(layout, layer_rates("constant", 0.0, 2), 3, 0).derive(9)
    assert nothing.selected == len(nothing.send.indices) == len(nothing.receive.indices) == 0


@pytest.mark.parametrize("block", ["3", "row"])
def test_all_scalars_of_a_block_go_together(block):
    layout = make_layout([[100, 20]], rows=True)
    theta = np.arange(4)[:, None] * np.ones(layout.size)
    after = shuffle(theta, plans(layout, layer_rates("constant", 0.7, 1), 4, 11, block=block))
    first, second = layout.entries
    length = 3 if block == "3" else 1
    for begin in range(0, 100, length):
        assert np.ptp(after[:, begin : min(begin + length, 100)], axis=1).max() == 0
    length = 3 if block == "3" else 10
    for begin in range(0, 20, length):
        at = second.offset + begin
        assert np.ptp(after[:, at : min(at + length, second.offset + 20)], axis=1).max() == 0
    assert any(np.ptp(after[:, at : at + 12], axis=1).any() for at in range(0, 80, 12))
    assert first.offset == 0


def test_a_row_of_parameters_of_any_shape():
    shapes = [(2, 3, 4), (5,), (), (0, 7)]
    entries, offset = [], 0
    for number, shape in enumerate(shapes):
        entry = Entry(
            name=str(number), shape=shape, stride=(1,) * len(shape), layer=0, offset=offset
        )
        entries.append(entry)
        offset += entry.size
    blocks = Blocks(Layout(tuple(entries), ()), "row")
    _, ends = blocks.scalars(np.arange(blocks.layout.size))
    assert np.diff(ends, prepend=0).tolist() == [12, 12, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("block", ["1", "16", "row"])
def test_payload_is_what_theory_says(block):
    layout = make_layout([[50000], [20000, 100], [700]], rows=True)
    doubled = make_layout([[50000], [20000, 100], [700]], slots=("param", "momentum_buffer"))
    rates = layer_rates("decreasing", 0.05, 3)
    deriver = Deriver(layout, rates, 5, 2, block=block)
    rounds = 300
    sent = sum(len(deriver.derive(seed).send.indices) for seed in range(rounds))
    expected = expected_payload(layout, rates, 5) * rounds
    together = {"1": 1, "16": 16, "row": 50}[block]  # scalars at most, which widens the spread
    assert abs(4 * sent - expected) < 5 * 4 * sqrt(together * expected / 4)
    assert expected_payload(doubled, rates, 5) == 2 * expected_payload(layout, rates, 5)
    assert expected_selected(layout, rates) == pytest.approx(0.05 * 50000 + 0.025 * 20100)


def remake():
    GOLDEN.write_text(json.dumps(golden_plans(), indent=1) + "\n")


def test_derivation_has_not_drifted():
    """Bits of plans, and of what they are made from, recorded once: the same on every machine."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["derivation"] == DERIVATION
    assert golden == json.loads(json.dumps(golden_plans()))


def golden_plans():
    """What plans.json holds. It is remade with version.DERIVATION, or when a case is added:

    python -c "from tests.unit.plan.test_plan import remake; remake()"
    """
    cases = []
    for n, p, schedule, group, block in [
        (2, 0.3, "decreasing", 0, "1"),
        (5, 0.02, "decreasing", 0, "1"),
        (5, 1e-4, "constant", 0, "1"),
        (7, 1.0, "increasing", 0, "1"),
        (8, 0.3, "decreasing", 0, "1"),
        (300, 0.01, "constant", 0, "1"),
        (300, 0.01, "constant", 4, "1"),
        (20, 0.01, "constant", 9, "1"),
        (5, 0.02, "decreasing", 0, "16"),
        (8, 0.3, "decreasing", 0, "row"),
    ]:
        layout = make_layout([[700, 16], [3, 129], [2500]], rows=True)
        deriver = Deriver(layout, layer_rates(schedule, p, 3), n, n // 2, group=group, block=block)
        for seed in (0, 1, 2**64 - 1):
            plan = deriver.derive(seed)
            cases.append(
                {
                    "n": n,
                    "group": group,
                    "block": block,
                    "p": p,
                    "schedule": schedule,
                    "seed": seed,
                    "selected": plan.selected,
                    "fingerprint": f"{plan.fingerprint:016x}",
                    "send": [plan.send.indices[:12].tolist(), plan.send.parts[:6]],
                    "receive": [plan.receive.indices[:12].tolist(), plan.receive.parts[:6]],
                }
            )
    words = [
        [int(w) for w in np.random.Philox(key=seed, counter=stream << 192).random_raw(5)]
        for seed in (0, 2**64 - 1)
        for stream in (0, 1)
    ]
    return {"derivation": DERIVATION, "philox": words, "plans": cases}
