"""Rounds of a few members in threads, over memory, against the dense reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from washp2p.config import RunConfig
from washp2p.errors import ProtocolError
from washp2p.exchange import Exchange
from washp2p.frames import Frame, headers
from washp2p.ledger import Kind
from washp2p.reference import Reference
from washp2p.rounds import Peer, Roster
from washp2p.runlog import RunLog, read_log
from washp2p.store import Store
from washp2p.strategies import strategy_for
from washp2p.transports import listen

RUN = b"exchange"


def model(member):
    torch.manual_seed(member)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)
    )


def step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randn(4, 1, 4, 4, generator=generator)).square().sum().backward()
    optimizer.step()


class Population:
    """Members of one process: model, optimizer, store, transport, exchange each."""

    def __init__(self, config, address, logs=None):
        self.logs = [RunLog(logs / f"{me}") if logs else None for me in range(config.n)]
        self.models = [model(member) for member in range(config.n)]
        self.optimizers = [
            torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in self.models
        ]
        self.transports = [listen(address()) for _ in range(config.n)]
        roster = Roster(
            epoch=0,
            peers=tuple(
                Peer(member=m, endpoint=t.endpoint, host="") for m, t in enumerate(self.transports)
            ),
        )
        self.exchanges = []
        for me, transport in enumerate(self.transports):
            for peer in roster.peers:
                if peer.member != me:
                    transport.connect(peer.member, peer.endpoint)
            strategy = strategy_for(config)
            store = Store(self.models[me], self.optimizers[me], strategy.slots(self.optimizers[me]))
            self.exchanges.append(
                Exchange(
                    store=store,
                    strategy=strategy,
                    transport=transport,
                    roster=roster,
                    me=me,
                    run=RUN,
                    log=self.logs[me],
                )
            )

    def round(self, number, seed):
        def run(me):
            def wait_until(condition):
                while not condition():
                    message = self.transports[me].receive(20)
                    self.exchanges[me].accept(headers.decode(message.header), message.buffers)

            self.exchanges[me].run_round(number, seed, wait_until)

        with ThreadPoolExecutor(len(self.models)) as pool:
            list(pool.map(run, range(len(self.models))))


@pytest.fixture
def population(memory_address):
    made = []

    def make(config, logs=None):
        made.append(Population(config, memory_address, logs))
        return made[-1]

    yield make
    for one in made:
        for log in filter(None, one.logs):
            log.close()
        for transport in one.transports:
            transport.close()


@pytest.mark.parametrize("method", ["wash", "wash-opt", "none"])
@pytest.mark.parametrize(("n", "p"), [(2, 0.3), (4, 1.0), (9, 0.05), (3, 0.0)])
def test_lockstep_rounds_equal_the_dense_reference(population, method, n, p):
    config = RunConfig.resolve(n=n, p=p, method=method)
    peers = population(config)
    models = [model(member) for member in range(n)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    reference = Reference(models, optimizers, method=method, schedule="decreasing", p=p)
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


def test_the_run_log_says_what_was_applied(population, tmp_path):
    peers = population(RunConfig.resolve(n=3, p=1.0), logs=tmp_path)
    for number in range(1, 4):
        peers.round(number, number)
    records = list(read_log(tmp_path / "1"))
    assert [(r.step, r.epoch, r.round, r.applied, r.lost) for r in records] == [
        (number, 0, number, (0, 2), ()) for number in range(1, 4)
    ]
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "1").read_bytes()[:-2])
    assert list(read_log(cut)) == records[:-1]


@pytest.mark.parametrize(
    ("change", "buffers", "words"),
    [
        ({"fingerprint": 1}, None, "derived another plan"),
        ({}, (memoryview(b"1234"),), "the plan says"),
        ({}, (), "the plan says"),
    ],
)
def test_frames_the_plan_did_not_foresee_are_named_and_not_applied(
    population, change, buffers, words
):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    before = [p.detach().clone() for p in peers.models[1].parameters()]
    frames = []

    def wait_until(condition):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        peers.exchanges[0].run_round(1, 5, wait_until)
    message = peers.transports[1].receive(5)
    frame = replace(headers.decode(message.header), **change)
    frames.append((frame, message.buffers if buffers is None else buffers))

    def deliver(condition):
        peers.exchanges[1].accept(*frames[0])
        assert condition()

    with pytest.raises(ProtocolError, match=words):
        peers.exchanges[1].run_round(1, 5, deliver)
    assert all(map(torch.equal, before, peers.models[1].parameters()))


def test_frames_of_other_epochs_strangers_and_the_past_are_refused(population):
    peers = population(RunConfig.resolve(n=2, p=1.0))
    peers.round(1, 1)
    peers.round(2, 2)
    frame = Frame(RUN, 1, 0, 3, 1, 0)
    for wrong in (replace(frame, epoch=1), replace(frame, sender=5), replace(frame, round=1)):
        with pytest.raises(ProtocolError):
            peers.exchanges[0].accept(wrong, ())
    peers.exchanges[0].accept(frame, ())
    with pytest.raises(ProtocolError, match="again"):
        peers.exchanges[0].accept(frame, ())
