"""Rounds of a few members over memory, against the dense reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.rounds import RUN, FromDevices, LateRounds, LazyCopies, model, step
from washp2p.config.config import RunConfig
from washp2p.config.sections import SELECTIVE
from washp2p.driver.outbox import AHEAD
from washp2p.model.device_copies import HostCopies
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import Frame, headers
from washp2p.protocol.refusals import Reason
from washp2p.transports.memory import MemoryTransport
from workers.simulation.reference import Reference

PEERS = range(9)


@pytest.mark.parametrize(
    "method", ["wash", "wash-opt", "none", "sparta", "papa", "papa-all", "papa-2"]
)
@pytest.mark.parametrize(
    ("n", "p", "block"),
    [(2, 0.3, "1"), (4, 1.0, "1"), (9, 0.05, "1"), (3, 0.0, "1"), (4, 0.3, "5"), (3, 0.5, "row")],
)
def test_lockstep_rounds_equal_the_dense_reference(population, method, n, p, block):
    block = block if method in SELECTIVE else "1"
    config = RunConfig.resolve(n=n, p=p, method=method, block=block)
    peers = population(config)
    models = [model(member) for member in range(n)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    reference = Reference(
        models,
        optimizers,
        method=method,
        schedule=config.method.schedule,
        p=p,
        block=block,
        alpha=config.method.alpha,
    )
    for number in range(1, 5):
        for member in range(n):
            for net, optimizer in (
                (peers.models[member], peers.optimizers[member]),
                (models[member], optimizers[member]),
            ):
                step(net, optimizer, 100 * number + member)
        peers.round(number, 10**18 + number)
        reference.shuffle(10**18 + number)
    for member in range(n):
        for mine, theirs in zip(
            peers.models[member].parameters(), models[member].parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)
            state, expected = peers.optimizers[member].state[mine], optimizers[member].state[theirs]
            assert torch.equal(state["momentum_buffer"], expected["momentum_buffer"])


def test_payload_is_the_plans_to_the_byte_and_wash_opt_doubles_it(population):
    totals = {}
    for method in ("wash", "wash-opt", "none"):
        peers = population(RunConfig.resolve(n=3, p=0.3, method=method))
        for number in range(1, 8):
            peers.round(number, number)
        counts = [transport.ledger.total(Kind.EXCHANGE) for transport in peers.transports]
        assert all(count.payload == count.expected for count in counts)
        assert all(count.header <= 64 * count.messages for count in counts)
        totals[method] = [count.payload for count in counts]
    assert totals["wash-opt"] == [2 * payload for payload in totals["wash"]]
    assert totals["none"] == [0, 0, 0]
    assert min(totals["wash"]) > 0


@pytest.mark.parametrize("wire", [MemoryTransport, FromDevices])
@pytest.mark.parametrize("late", ["overwrite", "difference"])
def test_values_that_are_not_finite_are_refused_in_all_slots_and_their_sender_named(
    population, late, wire
):
    """One diverged member does not poison the others, one round late or not."""
    config = RunConfig.resolve(n=3, p=1.0, method="wash-opt", late=late, max_delay="1")
    late_rounds = LateRounds(population, config, wire=wire)
    for member in range(3):
        late_rounds.step(member)
    late_rounds.let_everything_through()
    for net, optimizer in (
        (late_rounds.peers.models[2], late_rounds.peers.optimizers[2]),
        (late_rounds.models[2], late_rounds.optimizers[2]),
    ):
        first, _, last, *_ = net.parameters()
        first.data.view(-1)[::2] = float("nan")
        first.data.view(-1)[1] = float("inf")
        optimizer.state[last]["momentum_buffer"].view(-1)[3] = float("nan")
    number = 2
    for member in range(3):
        late_rounds.rounds[member] = number
        late_rounds.reference.gather(member, number, number)
        late_rounds.peers.send(member, number, number)
    late_rounds.let_everything_through()
    for member in (0, 1):
        exchange = late_rounds.peers.exchanges[member]
        assert exchange.merger.diverged == {2}
        assert exchange.merger.refused_values > 0
        state = late_rounds.peers.optimizers[member].state
        for parameter in late_rounds.peers.models[member].parameters():
            assert parameter.isfinite().all()
            assert state[parameter]["momentum_buffer"].isfinite().all()
        for mine, theirs in zip(
            late_rounds.peers.models[member].parameters(),
            late_rounds.models[member].parameters(),
            strict=True,
        ):
            assert torch.equal(mine, theirs)
    assert late_rounds.peers.exchanges[2].merger.diverged == set()


def test_it_says_what_was_applied(population):
    peers = population(RunConfig.resolve(n=3, p=1.0))
    for number in range(1, 4):
        assert peers.round(number, number)[1] == [(number, (0, 2), (), 0)]


@pytest.mark.parametrize(
    ("change", "payload", "reason"),
    [
        ({"fingerprint": 1}, None, Reason.OTHER_PLAN),
        ({"generation": 1}, None, Reason.ROUND),
        ({"slots": 2}, None, Reason.LENGTH),
        ({}, memoryview(b"1234"), Reason.LENGTH),
        ({}, memoryview(b""), Reason.LENGTH),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_frames_the_plan_did_not_foresee_are_named_and_count_as_lost(
    population, change, payload, reason, early
):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    before = [p.detach().clone() for p in peers.models[1].parameters()]
    peers.send(0, 1, 5)
    message = peers.transports[1].receive(5)
    frame = replace(headers.decode(message.header), **change)
    arrivals = peers.exchanges[1].arrivals
    if not early:
        peers.send(1, 1, 5)
    arrivals.accept(frame, message.payload if payload is None else payload)
    if early:
        peers.send(1, 1, 5)
    assert [(peer, why) for peer, why, _ in peers.refusals[1].all] == [(0, reason)]
    assert arrivals.complete(1)
    assert arrivals.expired_values > 0
    assert peers.exchanges[1].apply() == [(1, (), (0,), 0)]
    assert all(map(torch.equal, before, peers.models[1].parameters()))


def test_frames_of_the_past_and_twice_the_same_are_refused(population):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    peers.round(1, 1)
    peers.round(2, 2)
    frame = Frame(RUN, 1, 0, 0, 3, 1, 0, 0)
    arrivals = peers.exchanges[0].arrivals
    arrivals.accept(replace(frame, round=1), memoryview(b""))
    arrivals.accept(frame, memoryview(b""))
    arrivals.accept(frame, memoryview(b""))
    assert peers.refusals[0].reasons == [Reason.AGAIN] * 2


@pytest.mark.parametrize("early", [False, True])
def test_values_of_whom_the_plan_does_not_foresee_are_refused(population, early):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    if not early:
        peers.send(0, 1, 1)
    peers.exchanges[0].arrivals.accept(Frame(RUN, 5, 0, 0, 1, 1, 0, 0), memoryview(b"1234"))
    if early:
        peers.send(0, 1, 1)
    assert peers.refusals[0].reasons == [Reason.PLAN]
    assert peers.exchanges[0].arrivals.waits_for(1) == {1}


def test_a_frame_that_a_newer_connection_overtook_is_refused_and_its_loss_counted_once(population):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    for number in (1, 2):
        peers.send(0, number, number)
        peers.send(1, number, number)
    first, second = (peers.transports[0].receive(5) for _ in range(2))
    arrivals = peers.exchanges[0].arrivals
    arrivals.accept(headers.decode(second.header), second.payload)
    lost = arrivals.expired_values
    assert lost > 0
    arrivals.accept(headers.decode(first.header), first.payload)
    assert (arrivals.expired_values, arrivals.refused) == (lost, 1)
    assert arrivals.complete(2)
    arrivals.posted(1, (2, 0))
    assert arrivals.expired_values == lost


@pytest.mark.parametrize("leaves", ["silence", "remove"])
def test_whoever_falls_silent_is_waited_for_no_longer(population, leaves):
    peers = population(RunConfig.resolve(n=3, p=1.0))
    arrivals = peers.exchanges[0].arrivals
    for me in range(3):
        peers.send(me, 1, 1)
    early = [peers.transports[0].receive(5) for _ in range(2)]
    getattr(arrivals, leaves)(2)
    assert arrivals.waits_for(1) == {1}
    lost = arrivals.expired_values
    assert lost > 0
    for message in early:
        arrivals.accept(headers.decode(message.header), message.payload)
    assert arrivals.refused == 1
    ((_, senders, missing, _),) = peers.exchanges[0].apply()
    assert (senders, missing) == ((1,), (2,))
    for me in range(3):
        peers.send(me, 2, 2)
    peers.deliver(0)
    again = leaves == "silence"  # it is heard again
    assert arrivals.complete(2)
    ((_, senders, missing, _),) = peers.exchanges[0].apply()
    assert set(missing) == (set() if again else {2})
    for me in range(3):
        peers.send(me, 3, 3)
    assert arrivals.waits_for(3) == ({1, 2} if again else {1})


schedules = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=5, max_size=60
)


@pytest.mark.parametrize("wire", [MemoryTransport, FromDevices])
@pytest.mark.parametrize("lane", [HostCopies, LazyCopies])
@pytest.mark.parametrize("late", ["overwrite", "difference"])
@pytest.mark.parametrize("method", ["wash", "wash-opt"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.tuples(st.integers(2, 6), st.sampled_from([0.2, 1.0])),
    st.sampled_from([0, 2, 3]),
    st.sampled_from(["1", "4", "row"]),
    schedules,
)
def test_any_schedule_of_arrivals(
    population, method, late, lane, wire, n_and_p, group, block, schedule
):
    """Late values by both rules, for every slot: bit for bit what the dense reference does.

    And by the difference the population's mean moves only by what the optimizers did.
    """
    n, p = n_and_p
    config = RunConfig.resolve(
        n=n, p=p, method=method, late=late, group=group, block=block, max_delay="none"
    )
    late_rounds = LateRounds(population, config, lane, wire)
    moved = torch.zeros_like(late_rounds.mean())
    for member in range(n):
        before = late_rounds.mean()
        late_rounds.step(member)
        moved += late_rounds.mean() - before
    start = late_rounds.mean() - moved
    largest = torch.ones(())
    for who, whom, count in schedule:
        member, sender = who % n, whom % n
        before = late_rounds.mean()
        late_rounds.step(member)
        moved += late_rounds.mean() - before
        if lane is LazyCopies:
            late_rounds.peers.stores[sender].copies.run(count)
        if sender != member:
            late_rounds.deliver(sender, member, count)
        late_rounds.apply(member)
        largest = torch.maximum(largest, late_rounds.largest())
    last = max(late_rounds.rounds)
    for member in range(n):
        while late_rounds.rounds[member] < last:
            before = late_rounds.mean()
            late_rounds.step(member)
            moved += late_rounds.mean() - before
    late_rounds.let_everything_through()
    late_rounds.assert_equal_to_the_reference()
    exchanges = late_rounds.peers.exchanges
    assert all(e.arrivals.complete(last) and not e.arrivals.expired_values for e in exchanges)
    sent = sum(t.ledger.total(Kind.EXCHANGE).payload for t in late_rounds.peers.transports)
    slots = 2 if method == "wash-opt" else 1
    assert sum(exchange.merger.applied_values for exchange in exchanges) * 4 * slots == sent
    if late == "difference":
        drift = (late_rounds.mean() - start - moved).abs().max()
        assert drift < 1e-5 * torch.maximum(largest, late_rounds.largest())


def test_nothing_waits_for_a_device_but_one_that_lags_behind(population):
    """Values leave when the device has delivered them, though the member does something else."""
    peers = population(RunConfig.resolve(n=2, p=1.0, max_delay="none"), LazyCopies)
    lane = peers.stores[0].copies
    for number in range(1, AHEAD + 2):
        peers.send(0, number, number)
    assert peers.transports[1].receive(0) is None
    lane.run(1)
    assert headers.decode(peers.transports[1].receive(5).header).round == 1
    assert peers.transports[1].receive(0) is None
    peers.send(0, AHEAD + 2, AHEAD + 2)
    with ThreadPoolExecutor(1) as training:
        posted = training.submit(peers.send, 0, AHEAD + 3, AHEAD + 3)
        with pytest.raises(TimeoutError):
            posted.result(0.2)
        lane.run(1)
        posted.result(5)
    lane.run(AHEAD + 1)
    peers.exchanges[0].end(AHEAD + 3, 1, PEERS)
    rounds = [headers.decode(peers.transports[1].receive(5).header) for _ in range(AHEAD + 3)]
    assert [getattr(header, "round", "end") for header in rounds] == [*range(2, AHEAD + 4), "end"]


def test_the_next_round_is_held_whatever_its_size(population, monkeypatch):
    monkeypatch.setattr("washp2p.rounds.arrivals.HELD_BYTES", 0)
    peers = population(RunConfig.resolve(n=2, p=1.0))
    for number in range(1, 4):
        peers.send(0, number, number)
        peers.deliver(1)
        peers.send(1, number, number)
        peers.deliver(0)
        assert [e.apply()[0].lost for e in peers.exchanges] == [(), ()]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.integers(2, 4),
    st.lists(
        st.tuples(*(st.integers(0, 3) for _ in range(4)), st.booleans()), min_size=5, max_size=40
    ),
)
def test_any_schedule_with_jumps(population, n, schedule):
    """Whoever jumps over rounds, and whenever: nobody waits in vain, and the bits are right."""
    config = RunConfig.resolve(n=n, p=0.5, method="wash", max_delay="none")
    late_rounds = LateRounds(population, config)
    for member in range(n):
        late_rounds.step(member)
    for who, whom, count, skip, gives_up in schedule:
        member, sender = who % n, whom % n
        late_rounds.step(member, skip)
        if sender != member:
            late_rounds.deliver(sender, member, count)
        if gives_up:
            late_rounds.peers.exchanges[member].arrivals.give_up(late_rounds.rounds[member] - 1)
        late_rounds.apply(member)
    for member, exchange in enumerate(late_rounds.peers.exchanges):
        exchange.end(late_rounds.rounds[member], 1, PEERS)
        for other in range(member + 1, n):
            late_rounds.deliver(member, other, 10**6)
            while late_rounds.rounds[other] < late_rounds.rounds[member]:
                late_rounds.step(other)
                late_rounds.apply(other)
    late_rounds.let_everything_through()
    late_rounds.assert_equal_to_the_reference()
    exchanges = late_rounds.peers.exchanges
    assert all(e.arrivals.complete(max(late_rounds.rounds)) for e in exchanges)
    assert not any(list(e.arrivals) for e in exchanges)


def test_a_member_that_jumps_counts_what_expires_and_so_do_its_peers(population):
    config = RunConfig.resolve(n=2, p=1.0, max_delay="none")
    late = LateRounds(population, config)
    for _ in range(10):
        late.step(0)
    late.step(1)
    late.deliver(0, 1, 10)
    slow, fast = late.peers.exchanges[1], late.peers.exchanges[0]
    assert slow.arrivals.newest == 10
    late.step(1, skip=8)  # rounds 2 to 9 are left out
    late.deliver(1, 0, 10)
    late.apply(0)
    late.apply(1)
    late.assert_equal_to_the_reference()
    sizes = [late.peers.transports[0].ledger.total(Kind.EXCHANGE).payload // 4 for _ in "x"]
    assert slow.merger.applied_values + slow.arrivals.expired_values == sizes[0]
    assert slow.merger.applied_values == fast.merger.applied_values
    assert slow.arrivals.expired_values == fast.arrivals.expired_values
    assert fast.arrivals.complete(10)


def test_what_is_given_up_is_counted_once_even_if_it_arrives(population):
    late = LateRounds(population, RunConfig.resolve(n=3, p=1.0, max_delay="none"))
    for member in range(3):
        for _ in range(4):
            late.step(member)
    exchange = late.peers.exchanges[0]
    late.deliver(1, 0, 10)
    exchange.arrivals.give_up(4)
    expired = exchange.arrivals.expired_values
    assert expired > 0
    assert [one.lost for one in exchange.apply()] == [(2,), (2,), (2,), ()]
    late.deliver(2, 0, 10)
    assert [(one.round, one.senders) for one in exchange.apply()] == [(4, (2,))]
    assert exchange.arrivals.expired_values == expired
    total = sum(
        link.payload
        for transport in late.peers.transports[1:]
        for to, link in transport.ledger.counts.items()
        if to.peer == 0
    )
    assert (exchange.merger.applied_values + expired) * 4 == total


def test_a_peer_that_ended_is_absent(population):
    late = LateRounds(population, RunConfig.resolve(n=2, p=1.0, max_delay="none"))
    late.step(0)
    late.step(1)
    late.peers.exchanges[1].end(1, 1, PEERS)
    late.deliver(1, 0, 1)
    message = late.peers.transports[0].receive(0) or late.links[1, 0].popleft()
    header = message[0] if isinstance(message, tuple) else headers.decode(message.header)
    late.peers.exchanges[0].arrivals.ended(header)
    assert late.peers.exchanges[0].arrivals.complete(1)
    sent = late.peers.transports[0].ledger.total(Kind.EXCHANGE).messages
    late.step(0)
    assert late.peers.exchanges[0].arrivals.complete(2)
    assert late.peers.transports[0].ledger.total(Kind.EXCHANGE).messages == sent
    assert late.peers.exchanges[0].arrivals.expired_values == 0


def test_early_frames_are_bounded_in_bytes(population, monkeypatch):
    monkeypatch.setattr("washp2p.rounds.arrivals.HELD_BYTES", 1000)
    late = LateRounds(population, RunConfig.resolve(n=2, p=1.0, max_delay="none"))
    for _ in range(6):
        late.step(0)
    late.deliver(0, 1, 10)
    exchange = late.peers.exchanges[1]
    dropped = exchange.arrivals.expired_values
    assert dropped > 0
    for _ in range(6):
        late.step(1)
    late.apply(1)
    assert exchange.arrivals.complete(6)
    assert exchange.arrivals.expired_values == dropped
    sent = late.peers.transports[0].ledger.total(Kind.EXCHANGE).payload // 4
    assert exchange.merger.applied_values + dropped == sent
