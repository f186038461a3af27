"""Methods that take means, against a few lines of NumPy, over memory; and what a loss does."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.layouts import make_layout
from tests.support.rounds import FromDevices, model
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from washp2p.evaluation.repair import moments
from washp2p.plan.plan import everything, pairs, reduce_and_share
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import Posted, headers
from washp2p.protocol.roster import Peer, Roster
from washp2p.rounds.repairer import Repairer
from washp2p.rounds.surveyor import Surveyor
from washp2p.strategies import STRATEGIES, strategy_for
from washp2p.transports.memory import MemoryTransport
from workers.simulation.reference import Reference

D = 4 * 9 + 4 + 16 * 8 + 8 + 8 * 3 + 3
"""Parameters of the test's model."""


def theta(peers):
    """What all members hold: members x d, float32."""
    return np.stack(
        [np.concatenate([p.detach().numpy().ravel() for p in m.parameters()]) for m in peers.models]
    )


def rounds(peers, count=3):
    for number in range(1, count + 1):
        peers.round(number, 10**17 + number)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("wire", [MemoryTransport, FromDevices])
def test_papa_all_replaces_everyone_by_the_mean(population, n, wire):
    peers = population(RunConfig.resolve(n=n, method="papa-all"), wire=wire)
    mean = theta(peers).astype(np.float64).mean(0).astype(np.float32)
    rounds(peers, 1)
    assert (theta(peers) == mean).all()


@pytest.mark.parametrize(("alpha", "fallen"), [(0.99, 1.0), (0.9, 0.25), (0.0, 1.0)])
def test_papa_pulls_towards_the_mean_as_far_as_the_learning_rate_says(
    population,
    alpha,
    fallen,
):
    """Equation 1, with 1 - alpha in proportion to the learning rate (section 2.3)."""
    peers = population(RunConfig.resolve(n=4, method="papa", alpha=alpha))
    for store, optimizer in zip(peers.stores, peers.optimizers, strict=True):
        store.learning_rate.sample()  # as at every step, long before a mean is taken
        optimizer.param_groups[0]["lr"] *= fallen
    held = theta(peers).astype(np.float64)
    pull = fallen * (1 - alpha)
    expected = (1 - pull) * held + pull * held.mean(0)
    rounds(peers, 1)
    assert theta(peers) == pytest.approx(expected, abs=1e-6)
    assert theta(peers).mean(0) == pytest.approx(held.mean(0), abs=1e-6)


def test_a_learning_rate_that_is_warmed_up_never_pulls_beyond_the_mean(population):
    peers = population(RunConfig.resolve(n=2, method="papa", alpha=0.0))
    torch.optim.lr_scheduler.LambdaLR(peers.optimizers[0], lambda _: 0.5)
    peers.optimizers[1].param_groups[0]["lr"] *= 1000
    held = theta(peers).astype(np.float64)
    rounds(peers, 1)
    halfway = (held[0] + held.mean(0)) / 2
    assert theta(peers) == pytest.approx(np.stack([halfway, held.mean(0)]), abs=1e-6)


def test_the_pull_follows_the_rate_of_every_step_not_of_those_with_a_mean(population):
    """A loop sets its rate by hand from step 1 on; a mean is taken after the third."""
    peers = population(RunConfig.resolve(n=2, method="papa", alpha=0.0))  # lr 0.01 when made
    models = [model(member) for member in range(2)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    reference = Reference(
        models, optimizers, method="papa", schedule="constant", p=1.0, due=lambda n: n == 3
    )
    for number, lr in enumerate((1.0, 0.9, 0.7), 1):
        for optimizer in (*peers.optimizers, *optimizers):
            optimizer.param_groups[0]["lr"] = lr
        for store in peers.stores:
            store.learning_rate.sample()
        reference.shuffle(number)
    held = theta(peers).astype(np.float64)
    peers.round(3, 3)
    expected = 0.3 * held + 0.7 * held.mean(0)
    assert theta(peers) == pytest.approx(expected, abs=1e-6)
    flat = [torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in models]
    assert np.stack(flat) == pytest.approx(expected, abs=1e-6)
    assert peers.stores[0].learning_rate.highest == 1.0


def test_nothing_made_of_a_mean_is_sent_before_the_log_says_so(population):
    peers = population(RunConfig.resolve(n=2, method="papa-all"))
    for me in range(2):
        peers.send(me, 1, 5)
    for me in range(2):
        peers.deliver(me)
    for exchange, other in zip(peers.exchanges, reversed(peers.transports), strict=True):
        logged = []

        def log(applied, logged=logged, other=other):
            assert other.receive(0) is None
            logged += applied

        assert exchange.apply(log) == logged != []
        assert other.receive(0) is not None


@pytest.mark.parametrize("n", [2, 3, 6])
def test_papa_2_takes_the_mean_of_a_pair_for_each(population, n):
    peers = population(RunConfig.resolve(n=n, method="papa-2"))
    held = theta(peers).astype(np.float64)
    drawn = pairs(77, n)
    peers.round(1, 77)
    for member, (a, b) in enumerate(drawn):
        assert a != b
        assert theta(peers)[member] == pytest.approx((held[a] + held[b]) / 2, abs=1e-7)


@given(st.integers(0, 2**64 - 1), st.integers(2, 40))
def test_pairs_are_of_two_members(seed, n):
    drawn = pairs(seed, n)
    assert len(drawn) == n
    assert all(0 <= a < n and 0 <= b < n and a != b for a, b in drawn)


def test_all_pairs_are_drawn_alike():
    n, seeds = 4, 3000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        for a, b in pairs(seed, n):
            counts[a, b] += 1
    off = counts[~np.eye(n, dtype=bool)]
    assert not counts.diagonal().any()
    assert abs(off - seeds * n / 12).max() < 5 * np.sqrt(seeds * n / 12)


@pytest.mark.parametrize("group", [0, 2])
def test_sparta_takes_the_mean_of_what_wash_would_permute(population, group):
    options = {"n": 5, "p": 0.3, "group": group}
    peers = population(RunConfig.resolve(method="sparta", **options))
    options["schedule"] = "constant"  # sparta's own
    wash = strategy_for(RunConfig.resolve(method="wash", **options))
    wash.prepare(peers.stores[0].layout, 5, 0)
    plan = wash.plan(99)
    received = np.searchsorted(everything(peers.stores[0].layout), plan.receive.indices)
    held = theta(peers).astype(np.float64)
    peers.round(1, 99)
    now = theta(peers)
    changed = np.flatnonzero((now != held.astype(np.float32)).any(0))
    assert len(changed) == plan.selected > 0
    assert set(received) <= set(changed)
    together = {position for position, _, _ in plan.receive.parts} | {0}
    own = sorted(together)
    assert now[0, changed] == pytest.approx(held[own][:, changed].mean(0), abs=1e-7)
    for position in range(5):
        rest = np.setdiff1d(np.arange(D), changed)
        assert (now[position, rest] == held[position, rest].astype(np.float32)).all()
    if not group:
        assert (now == now[0]).all(0)[changed].all()


@given(
    st.integers(2, 9), st.integers(0, 60), st.integers(0, 2**63), st.randoms(use_true_random=False)
)
@settings(max_examples=60)
def test_what_one_sends_in_either_leg_the_other_expects(n, count, fingerprint, random):
    """And a member sends 2 (n-1)/n of the values, give or take the shards' rounding."""
    indices = np.array(sorted(random.sample(range(1000), count)), dtype=np.int64)
    plans = [reduce_and_share(indices, np.arange(n), own, fingerprint) for own in range(n)]
    for me, plan in enumerate(plans):
        for peer, begin, end in plan.send.parts:
            other = plans[peer]
            (found,) = [(a, b) for who, a, b in other.receive.parts if who == me]
            mine, theirs = plan.send.indices[begin:end], other.receive.indices[slice(*found)]
            assert (mine == theirs).all()
        sent = sum(
            end - begin for route in (plan.send, plan.receive) for _, begin, end in route.parts
        )
        assert abs(sent - 2 * (n - 1) / n * count) <= n


@pytest.mark.parametrize(
    ("method", "each"),
    [("papa", 2 * 2 / 3), ("papa-all", 2 * 2 / 3), ("papa-2", None), ("sparta", None)],
)
def test_bytes_are_the_plans_and_the_formulas(population, method, each):
    config = RunConfig.resolve(n=3, p=0.5, method=method, schedule="constant")
    peers = population(config)
    count = 60
    rounds(peers, count)
    counts = [transport.ledger.total(Kind.EXCHANGE) for transport in peers.transports]
    assert all(c.payload == c.expected for c in counts)
    theory = strategy_for(config).expected_payload(peers.stores[0].layout, 3) * count
    assert sum(c.payload for c in counts) / 3 == pytest.approx(theory, rel=0.1)
    if each is not None:
        for one in counts:
            assert one.payload == pytest.approx(each * D * 4 * count, rel=0.01)
    paper = strategy_for(config).paper_payload(peers.stores[0].layout)
    assert paper == pytest.approx((0.5 if method == "sparta" else 1.0) * D * 4)


def test_a_value_that_is_no_number_is_left_out_of_the_mean(population):
    peers = population(RunConfig.resolve(n=3, method="papa-all"))
    with torch.no_grad():
        peers.models[1][0].weight[0] = float("nan")
    held = theta(peers).astype(np.float64)
    rounds(peers, 1)
    assert theta(peers) == pytest.approx(np.tile(np.nanmean(held, 0), (3, 1)), abs=1e-6)
    assert [exchange.merger.diverged for exchange in peers.exchanges] == [{1}, set(), set()]
    assert [exchange.merger.refused_values for exchange in peers.exchanges] == [9, 0, 0]


def test_where_nobody_has_a_number_nothing_is_written(population):
    peers = population(RunConfig.resolve(n=2, method="papa", alpha=0.5))
    for net in peers.models:
        with torch.no_grad():
            net[0].bias[0] = float("inf")
    rounds(peers, 2)
    assert np.isfinite(theta(peers)).sum(1).tolist() == [D - 1, D - 1]


def test_a_mean_is_of_those_who_are_left_and_what_they_do_not_share_stays(
    population,
):
    peers = population(RunConfig.resolve(n=3, method="papa-all"))
    held = theta(peers)
    bounds = [D * k // 3 for k in range(4)]
    for me in (0, 1):
        peers.send(me, 1, 5)
    for me in (0, 1):
        peers.exchanges[me].arrivals.remove(2)
        peers.deliver(me)
        assert peers.exchanges[me].arrivals.complete(1)
        assert [one.lost for one in peers.exchanges[me].apply()] == [(2,)]
    for me in (0, 1):
        peers.deliver(me)
        assert peers.exchanges[me].arrivals.complete(1)
        (applied,) = peers.exchanges[me].apply()
        assert (applied.senders, applied.lost) == ((1 - me,), (2,))
    mean = held[:2].astype(np.float64).mean(0).astype(np.float32)
    for me in (0, 1):
        now = theta(peers)[me]
        assert (now[: bounds[2]] == mean[: bounds[2]]).all()
        assert (now[bounds[2] :] == held[me, bounds[2] :]).all()
        lost = peers.exchanges[me].arrivals.lost
        assert sum(lost.values()) == bounds[me + 1] - bounds[me] + D - bounds[2]


def test_a_lone_shard_stays_as_it_is(population):
    """A mean of one's own values is none: not even a rounding error is left."""
    peers = population(RunConfig.resolve(n=2, method="papa", alpha=0.3))
    held = theta(peers)
    peers.send(0, 1, 5)
    peers.exchanges[0].arrivals.remove(1)
    peers.exchanges[0].apply()
    peers.exchanges[0].apply()
    assert (theta(peers)[0] == held[0]).all()
    assert not peers.exchanges[0].arrivals.outstanding


@pytest.mark.parametrize("method", [name for name, kind in STRATEGIES.items() if kind.lockstep])
@pytest.mark.parametrize("delay", ["1", "auto", "none"])
def test_means_refuse_to_be_late(method, delay):
    with pytest.raises(UsageError, match=f"--max-delay is {delay}; --method {method} takes means"):
        RunConfig.resolve(n=3, method=method, max_delay=delay)


@pytest.mark.parametrize(
    ("options", "rounds_due"),
    [
        ({}, list(range(1, 13))),
        ({"every": 5}, [5, 10]),
        ({"from_": "0.5"}, list(range(7, 13))),
        ({"from_": "1", "until": "2"}, [4, 5, 6]),
        ({"until": "0.25", "every": 2}, [2]),
        ({"method": "papa-all", "every": 2}, [6]),
        ({"method": "dart", "every": 1}, [9]),
        ({"method": "papa-2", "every": 3}, [9]),
        ({"method": "papa"}, [10]),
        ({"method": "none"}, list(range(1, 13))),
    ],
)
def test_windows_and_periods(options, rounds_due):
    """Four epochs of three rounds each."""
    strategy = strategy_for(RunConfig.resolve(n=2, epochs=4, **options))
    strategy.begin(12)
    assert [number for number in range(1, 13) if strategy.due(number)] == rounds_due
    assert strategy.rounds_due(range(1, 13)) == len(rounds_due)
    assert strategy.rounds_due(range(5, 5)) == 0


def test_epochs_that_no_round_ends_with_are_still_counted():
    strategy = strategy_for(RunConfig.resolve(n=2, epochs=3, method="papa-all", every=1))
    strategy.begin(10)
    assert [number for number in range(1, 11) if strategy.due(number)] == [4, 7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_": "9"}, "--from 9 is not before --until 1.0"),
        ({"until": "0"}, "--from 0 is not before --until 0"),
        ({"from_": "0.5", "until": "1"}, "--from 0.5 is not before --until 1 in 4 epochs"),
        ({"every": 13}, "--every 13 exchanges nothing in 12 rounds"),
        ({"method": "dart", "every": 4}, "--every is 4 epochs of 4"),
        ({"method": "dart", "every": 1, "until": "0.7"}, "exchanges nothing"),
        ({"method": "papa", "group": 2}, "--group is 2; --method papa takes means of all"),
        ({"repair": 1}, "--repair is 1 with --method wash"),
        ({"until": "1.5"}, "--until is '1.5'"),
        ({"from_": "soon"}, "--from is 'soon'"),
    ],
)
def test_what_can_have_no_effect_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        strategy_for(RunConfig.resolve(n=2, epochs=4, **options)).begin(12)


@pytest.mark.parametrize("options", [{"method": "papa-all"}, {"from_": "2"}, {"until": "0.5"}])
def test_who_needs_the_number_of_rounds_says_so(options):
    with pytest.raises(UsageError, match=r"join\(rounds=...\)"):
        strategy_for(RunConfig.resolve(n=2, **options)).begin(0)


def test_everything_is_every_scalar_and_no_padding():
    layout = make_layout([[9, 3], [12]])
    assert len(everything(layout)) == layout.values == 24
    assert everything(layout).tolist() == [*range(9), *range(16, 19), *range(32, 44)]


def of_a_plugin(max_delay="auto", group=0, block="1"):
    """The configuration of a method of another package."""
    return SimpleNamespace(
        method=SimpleNamespace(
            name="mine", every=1, from_="0", until="1.0", group=group, block=block
        ),
        exchange=SimpleNamespace(max_delay=max_delay),
        training=SimpleNamespace(epochs=1),
    )


def test_a_strategy_of_its_own_kind_must_be_in_lockstep_too():
    with pytest.raises(UsageError, match="--max-delay is auto, expected 0"):
        STRATEGIES["papa-all"](of_a_plugin()).begin(10)


@pytest.mark.parametrize(
    ("options", "line"),
    [({"group": 3}, "--group is 3; --method mine heeds"), ({"block": "4"}, "--block is 4; --m")],
)
def test_a_strategy_of_its_own_kind_does_not_ignore_groups_and_blocks(options, line):
    with pytest.raises(UsageError, match=line):
        STRATEGIES["none"](of_a_plugin(**options)).begin(10)
    STRATEGIES["wash"](of_a_plugin(**options)).begin(10)


def test_more_epochs_than_rounds_make_every_round_a_mean():
    strategy = strategy_for(RunConfig.resolve(n=2, epochs=12, method="papa-all", every=1))
    strategy.begin(8)
    assert [strategy.due(number) for number in range(1, 9)] == [True] * 7 + [False]


def test_what_was_lost_beside_a_round_without_values_is_given_up_when_the_link_holds_again(
    population,
):
    peers = population(RunConfig.resolve(n=2, method="none", max_delay="0"))
    for me in (0, 1):
        surveyor = Surveyor(peers.stores[me], me, seed=0, every=1)
        beside = surveyor.begin(15, peers.roster, exact=False)
        peers.exchanges[me].send_beside(15, peers.roster, beside)
        assert peers.transports[1 - me].receive(0) is not None  # lost on the way
    for me in (0, 1):
        peers.exchanges[me].resume(1 - me)
    for me in (0, 1):
        header = headers.decode(peers.transports[me].receive(0).header)
        assert isinstance(header, Posted)
        peers.exchanges[me].arrivals.posted(header.sender, (header.last, header.leg))
        assert peers.exchanges[me].arrivals.complete(15)
        assert peers.exchanges[me].apply() == []
        assert peers.exchanges[me].arrivals.lost_by_reason == {}


def test_moments_of_one_that_has_diverged_are_left_out():
    models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2)]
    inputs = [torch.randn(16, 3)]
    repairer = Repairer(models[0], 0, lambda: inputs)
    roster = Roster(generation=0, peers=tuple(Peer(m, "") for m in range(3)))
    plan = reduce_and_share(np.arange(26), np.arange(3), 0, 1)
    own, other = repairer.moments(), moments(models[1], inputs)
    repairer.begin(own, roster, plan).finish({1: other, 2: torch.full_like(own, float("nan"))})
    assert moments(models[0], inputs) == pytest.approx((own + other) / 2, abs=1e-5)
    before = [p.clone() for p in models[0].parameters()]
    diverged = torch.full_like(own, float("nan"))
    repairer.begin(diverged, roster, plan).finish({2: diverged})
    assert all(map(torch.equal, before, models[0].parameters()))


def test_nothing_is_found_where_somebody_has_diverged(population):
    peers = population(RunConfig.resolve(n=2, method="none", max_delay="0"))
    surveyor = Surveyor(peers.stores[0], 0, seed=0, every=1)
    beside = surveyor.begin(1, peers.roster, exact=True)
    (count,) = beside.incoming.values()
    beside.finish({1: torch.full((count,), float("nan"))})
    assert surveyor.found == []
    surveyor.begin(2, peers.roster, exact=True).finish({1: torch.zeros(count)})
    assert [(one.round, one.members, one.exact) for one in surveyor.found] == [(2, 2, True)]


def test_a_mean_in_half_precision_is_the_references():
    """Rounded where it is sent, pulled to in float32, rounded once."""
    models = [torch.nn.Linear(9, 4).bfloat16() for _ in range(6)]
    mine, theirs = models[:3], deepcopy(models[:3])
    reference = Reference(
        theirs,
        [torch.optim.SGD(m.parameters(), lr=0.1) for m in theirs],
        method="papa",
        schedule="constant",
        p=1.0,
        alpha=0.7,
    )
    reference.shuffle(3)
    held = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in mine]
    mean = torch.stack(held).double().mean(0).bfloat16().float()
    for own, one in zip(held, theirs, strict=True):
        expected = (own.float() * (1 - (1 - 0.7)) + mean * (1 - 0.7)).bfloat16()
        found = torch.cat([p.detach().flatten() for p in one.parameters()])
        assert torch.equal(found, expected)
