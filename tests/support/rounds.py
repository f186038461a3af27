"""Members of one process that exchange rounds over memory, some of them late."""

from __future__ import annotations

import threading
from collections import deque
from copy import deepcopy
from functools import cache

import torch
from torch import nn

from tests.support.refusals import RecordedRefusals
from washp2p.driver.outbox import AHEAD, DeviceOutbox
from washp2p.model.device_copies import HostCopies, Staging
from washp2p.model.store import Store
from washp2p.protocol.messages.frames import End, headers
from washp2p.protocol.roster import Peer, Roster
from washp2p.rounds.exchange import Exchange
from washp2p.rounds.round_state import stage
from washp2p.strategies import strategy_for
from washp2p.transports.base import Message
from washp2p.transports.memory import MemoryTransport
from workers.simulation.reference import Reference

RUN = b"exchange"


def model(member):
    return deepcopy(_model(member))


@cache  # torch keeps a stack for every seed it is given, if there is no accelerator
def _model(member):
    torch.manual_seed(member)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3)
    )


def step(net, optimizer, seed):
    """Follow a drawn gradient: no schedule of late values makes the model diverge."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


class LazyCopies(HostCopies):
    """A device whose copies to the host are late: `run` makes them.

    What is copied is what was there when the gather was asked for, as in a CUDA stream.
    """

    def __init__(self):
        self.queue = deque()

    def staging(self, dtypes):
        return Staging(dtypes, reuse=False, pin=False)

    def gather(self, vectors, places, out):
        picked = self.keep(vectors, places)
        for values in out:
            values.fill_(float("nan"))
        self.queue.append(LateCopy(picked, out))
        return self.queue[-1]

    def pick(self, vectors, places):
        out = [torch.empty(len(places), dtype=vector.dtype) for vector in vectors]
        return out, self.gather(vectors, places, out)

    def run(self, count):
        for _ in range(min(count, len(self.queue))):
            self.queue.popleft().make()


class LateCopy:
    def __init__(self, picked, out):
        self.picked, self.out = picked, out
        self.made = threading.Event()

    def make(self):
        for values, new in zip(self.out, self.picked, strict=True):
            values.copy_(new)
        self.made.set()

    def done(self):
        return self.made.is_set()

    def wait(self):
        assert self.made.wait(20)


class FromDevices(MemoryTransport):
    """Takes vectors for every other peer, as wires between devices do, and brings them as one."""

    def direct(self, peer):
        return peer % 2 == 1

    def _put(self, peer, header, buffers):
        if not self.direct(peer) or not any(isinstance(b, torch.Tensor) for b in buffers):
            return super()._put(peer, header, buffers)
        payload = torch.cat([vector.view(torch.uint8) for vector in buffers])
        self._inboxes[self._peers[peer]].put(Message(memoryview(header), payload))
        return "memory", payload.nbytes


class Population:
    """Members of one process: model, optimizer, store, transport, exchange each."""

    def __init__(self, config, address, lane=HostCopies, wire=MemoryTransport):
        self.strategies = []
        self.stores = []
        self.models = [model(member) for member in range(config.n)]
        self.optimizers = [
            torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in self.models
        ]
        self.transports = [wire(address()) for _ in range(config.n)]
        roster = Roster(
            generation=0,
            peers=tuple(
                Peer(member=m, endpoint=t.endpoint, host="") for m, t in enumerate(self.transports)
            ),
        )
        self.roster = roster
        self.exchanges = []
        self.outboxes = [DeviceOutbox(transport) for transport in self.transports]
        self.refusals = [RecordedRefusals() for _ in range(config.n)]
        for me, transport in enumerate(self.transports):
            for peer in roster.peers:
                if peer.member != me:
                    transport.connect(peer.member, peer.endpoint)
            strategy = strategy_for(config)
            slots = strategy.slots(self.optimizers[me])
            store = Store(self.models[me], self.optimizers[me], slots, lane())
            self.stores.append(store)
            self.exchanges.append(
                Exchange(
                    store=store,
                    transport=transport,
                    outbox=self.outboxes[me],
                    me=me,
                    run=RUN,
                    add=config.exchange.late == "difference" and config.exchange.max_delay != "0",
                    refusals=self.refusals[me],
                    weight=lambda strategy=strategy, store=store: strategy.weight(
                        store.learning_rate.share
                    ),
                )
            )
            strategy.prepare(store.layout, config.n, me)
            self.strategies.append(strategy)

    def send(self, me, number, seed):
        self.stores[me].learning_rate.sample()
        staged = stage(self.strategies[me].plan(seed), self.roster, self.stores[me].copies)
        if staged is not None:
            self.exchanges[me].send(number, staged)

    def deliver(self, me, count=10**9):
        """Hand a member what has arrived, `count` messages at most."""
        while count and (message := self.transports[me].receive(0)) is not None:
            count -= 1
            self.exchanges[me].arrivals.accept(headers.decode(message.header), message.payload)

    def round(self, number, seed):
        """A lockstep round of everyone; what each member applied."""
        everyone = range(len(self.models))
        for me in everyone:
            self.send(me, number, seed)
        applied = [[] for _ in everyone]
        for _ in range(2):  # a mean has two legs
            for me in everyone:
                self.deliver(me)
            for me in everyone:
                assert self.exchanges[me].arrivals.complete(number)
                applied[me] += self.exchanges[me].apply()
        return applied


class LateRounds:
    """A population whose messages are held on their links and let through as a test likes.

    Whatever is done is done to the reference, too.
    """

    def __init__(self, population, config, lane=HostCopies, wire=MemoryTransport):
        n = config.n
        self.config = config
        self.peers = population(config, lane, wire)
        self.models = [model(member) for member in range(n)]
        self.optimizers = [
            torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in self.models
        ]
        self.reference = Reference(
            self.models,
            self.optimizers,
            method=config.method.name,
            schedule="decreasing",
            p=config.method.p,
            group=config.method.group,
            block=config.method.block,
            late=config.exchange.late,
        )
        self.links = {(a, b): deque() for a in range(n) for b in range(n) if a != b}
        self.rounds = [0] * n

    def step(self, member, skip=0):
        """An optimizer step of one member, then its next round (or a later one): sent, on links."""
        self.rounds[member] += 1 + skip
        number = self.rounds[member]
        for net, optimizer in (
            (self.peers.models[member], self.peers.optimizers[member]),
            (self.models[member], self.optimizers[member]),
        ):
            step(net, optimizer, 100 * number + member)
        self.reference.gather(member, number, number)
        lane = self.peers.stores[member].copies
        if isinstance(lane, LazyCopies):  # or it would have to wait for the device
            lane.run(len(lane.queue) - AHEAD)
        self.peers.send(member, number, number)

    def deliver(self, sender, receiver, count):
        """Let through up to `count` messages of a link."""
        for receiver_, transport in enumerate(self.peers.transports):
            while (message := transport.receive(0)) is not None:
                header = headers.decode(message.header)
                self.links[header.sender, receiver_].append((header, message.payload))
        link = self.links[sender, receiver]
        for _ in range(min(count, len(link))):
            header, payload = link.popleft()
            if isinstance(header, End):
                self.peers.exchanges[receiver].arrivals.ended(header)
            else:
                self.peers.exchanges[receiver].arrivals.accept(header, payload)

    def apply(self, member):
        for number, senders, _, _ in self.peers.exchanges[member].apply():
            self.reference.apply(member, number, senders)

    def let_everything_through(self):
        for store, exchange in zip(self.peers.stores, self.peers.exchanges, strict=True):
            if isinstance(store.copies, LazyCopies):
                store.copies.run(len(store.copies.queue))
            exchange.flush()
        for sender, receiver in self.links:
            self.deliver(sender, receiver, 10**6)
        for member in range(self.config.n):
            self.apply(member)

    def assert_equal_to_the_reference(self):
        for member in range(self.config.n):
            for mine, theirs in zip(
                self.peers.models[member].parameters(),
                self.models[member].parameters(),
                strict=True,
            ):
                assert torch.equal(mine, theirs)
                state = self.peers.optimizers[member].state[mine]
                expected = self.optimizers[member].state[theirs]
                assert torch.equal(state["momentum_buffer"], expected["momentum_buffer"])

    def mean(self):
        return self._rows().mean(0)

    def largest(self):
        return self._rows().abs().max()

    def _rows(self):
        rows = [
            torch.cat([p.detach().double().flatten() for p in m.parameters()])
            for m in self.peers.models
        ]
        return torch.stack(rows)
