"""Whatever workers say, in whatever order, the coordinator's state machine goes on."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from coordinator.machine.commands import EndRun, Reject, Send
from coordinator.machine.membership import Membership
from coordinator.service.summary import summarise
from tests.support.layouts import make_layout
from tests.support.messages import control_messages, records
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.control import PROTOCOL, messages
from washp2p.protocol.messages.from_coordinator import NewRoster, View
from washp2p.protocol.messages.from_worker import Attach, Hello, Synced, Vitals
from washp2p.reporting.report import final_tables
from washp2p.reporting.status_table import render

LAYOUT = make_layout([[9, 3], [12]]).to_wire()
GOOD = 3


class Run:
    def __init__(self, encrypted):
        self.key = bytes(32) if encrypted else b""
        self.machine = Membership(
            RunConfig.resolve(n=GOOD + 2, min_n=GOOD, data="digits"),
            run=b"12345678",
            name="x",
            version="1",
            derivation=1,
            encrypted=encrypted,
        )
        self.now = 0.0
        self.ended = False

    def do(self, commands):
        for command in commands:
            self.ended |= isinstance(command, EndRun)
            if isinstance(command, Send):
                decoded = messages.decode(messages.encode(command.message))
                assert messages.encode(decoded) == messages.encode(command.message)

    def tell(self, who, message):
        self.do(self.machine.receive(who, message, self.now))

    def start(self):
        for number in range(GOOD):
            who = b"good%d" % number
            self.tell(who, Hello(PROTOCOL, 1, "1", "h", number))
            key = bytes([number]) * len(self.key)
            self.tell(
                who, Attach(LAYOUT, f"tcp://127.0.0.1:{9000 + number}", [], "here", key, 40, {}, "")
            )
        self.now += 6
        self.do(self.machine.tick(self.now))
        for number in range(GOOD):
            self.tell(b"good%d" % number, Synced(0))
        assert self.machine.population.published


who = st.sampled_from([b"good0", b"bad", b"worse"])
hello = st.just(Hello(PROTOCOL, 1, "1", "h", 1))
attach = st.builds(
    Attach, st.just(LAYOUT), st.just("tcp://127.0.0.1:1"), st.just([]), st.just("here"),
    st.binary(max_size=32), st.just(40), st.just({}),
)  # fmt: skip
vitals = records([Vitals]).map(
    lambda v: replace(v, sent=[(peer, "exchange", *row) for peer, _, *row in v.sent])
)
said = st.one_of(control_messages, hello, attach, vitals)
steps = st.lists(
    st.one_of(
        st.tuples(who, said), st.tuples(who, st.just(None)), st.just((None, None))
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.booleans(), steps)
def test_any_sequence_of_messages_losses_and_ticks_raises_nothing(encrypted, started, sequence):
    run = Run(encrypted)
    if started:
        run.start()
    for identity, message in sequence:
        run.now += 1
        if message is not None:
            run.tell(identity, message)
        elif identity is not None:
            run.do(run.machine.gone(identity, run.now))
        else:
            run.do(run.machine.tick(run.now))
        view = View(run.machine.observation.view(run.machine.population))
        decoded = messages.decode(messages.encode(view))
        Console(file=io.StringIO()).print(render({"run": "x", **decoded.values}))
    population = run.machine.population
    if population.ended and population.settled is not None:
        summary = summarise(population, Counter(), Counter(), {})
        list(final_tables(summary))


@settings(max_examples=100, deadline=None)
@given(st.lists(said, max_size=20))
def test_who_is_no_member_moves_nothing(sequence):
    """It may knock; nothing else that it says reaches the population."""
    run = Run(encrypted=True)
    run.start()
    before = replace(run.machine.population.roster), run.machine.population.published
    for message in sequence:
        if isinstance(message, Hello):
            continue
        commands = list(run.machine.receive(b"nobody", message, run.now))
        assert all(isinstance(command, Send | Reject) for command in commands)
        assert not any(isinstance(c, Send) and isinstance(c.message, NewRoster) for c in commands)
    assert before == (run.machine.population.roster, run.machine.population.published)
