"""A real capture, replayed, reordered, duplicated, truncated: only genuine values are ever applied.

What a member applies, it says; the dense reference does that with the values that were really sent,
and the two must hold the same bits.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.rounds import RUN, LateRounds
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.frames import Chunk, End, Fetch, Posted, headers
from washp2p.protocol.patience import Patience
from washp2p.protocol.roster import Peer
from washp2p.rounds.inbox import IN_ADVANCE, Inbox
from washp2p.transports.base import Message
from washp2p.transports.transfer import Transfer

ROUNDS = 6

message = st.tuples(
    st.integers(0, 2 * ROUNDS - 1),  # which message of the capture
    st.sampled_from(["whole", "whole", "header", "payload", "longer", "empty"]),
    st.integers(0, 60),  # where it is cut
)
stray = st.sampled_from(
    [
        headers.encode(one)
        for one in (
            End(RUN, 1, 0, 0, ROUNDS, 1),
            End(RUN, 2, 0, 0, 2, 1),
            Posted(RUN, 1, 0, 3, 0),
            Posted(RUN, 2, 0, 2**40, 0),
            Fetch(RUN, 1, 0, "param", 0, 1 << 20),
            Fetch(RUN, 7, 0, "../../etc/passwd", 2**60, 2**60),
            Chunk(RUN, 1, 0, "start:param", 0, 2**60, bytes(8)),
            End(b"another!", 1, 0, 0, 1, 1),
            Fetch(RUN, 1, 2, "param", 0, 1),
        )
    ]
)
delivery = st.lists(st.one_of(message, message, stray), max_size=12)


class Victim:
    """Member 0's inbox over the exchange of `rounds`; what arrives is handed to it."""

    def __init__(self, rounds):
        transport, exchange = rounds.peers.transports[0], rounds.peers.exchanges[0]
        self.refusals = rounds.peers.refusals[0]
        connection = SimpleNamespace(
            patience=Patience(),
            member=0,
            run=RUN,
            place="here",
            state=SimpleNamespace(
                rosters=[rounds.peers.roster],
                changes=0,
                seeds=SimpleNamespace(until=ROUNDS),
                take_guests=list,
            ),
            check=lambda: None,
        )
        self.inbox = Inbox(
            connection=connection,
            transport=transport,
            transfer=Transfer(transport, RUN, 0, self.refusals),
            exchange=exchange,
            refusals=self.refusals,
            clock=lambda: 0.0,
        )
        for peer in (1, 2):
            self.inbox._linked[peer] = Peer(peer, "", "")

    def receive(self, header, payload=b""):
        self.inbox.take(Message(memoryview(header), memoryview(payload)))


def mutated(capture, which, how, at):
    header, payload = capture[which]
    return {
        "whole": (header, payload),
        "header": (header[:at], payload),
        "payload": (header, payload[: at % max(1, len(payload))]),
        "longer": (header, payload + bytes(1 + at)),
        "empty": (header, b""),
    }[how]


@pytest.mark.parametrize("late", ["overwrite", "difference"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(delivery, min_size=ROUNDS, max_size=ROUNDS), st.integers(0, 2))
def test_only_genuine_values_are_applied(population, late, deliveries, skip):
    config = RunConfig.resolve(n=3, p=1.0, late=late, max_delay="none")
    rounds = LateRounds(population, config)
    capture = []
    for _ in range(ROUNDS):
        for member in (1, 2):
            rounds.step(member)
    while (one := rounds.peers.transports[0].receive(0)) is not None:
        capture.append((bytes(one.header), bytes(one.payload)))
    assert len(capture) == 2 * ROUNDS
    victim = Victim(rounds)
    for number, messages in enumerate(deliveries):
        if rounds.rounds[0] < ROUNDS:
            rounds.step(0, skip if number == 2 and rounds.rounds[0] + skip < ROUNDS else 0)
        for one in messages:
            if isinstance(one, bytes):
                victim.receive(one)
            else:
                victim.receive(*mutated(capture, *one))
        rounds.apply(0)
    for mine, theirs in zip(
        rounds.peers.models[0].parameters(), rounds.models[0].parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert rounds.peers.exchanges[0].merger.diverged == set()


def test_a_capture_as_it_was_is_applied_whole(population):
    """Or the test above would pass by refusing everything."""
    rounds = LateRounds(population, RunConfig.resolve(n=3, p=1.0, max_delay="none"))
    for _ in range(ROUNDS):
        for member in (1, 2):
            rounds.step(member)
    victim = Victim(rounds)
    before = [p.detach().clone() for p in rounds.peers.models[0].parameters()]
    for _ in range(ROUNDS):
        rounds.step(0)
    while (one := rounds.peers.transports[0].receive(0)) is not None:
        victim.receive(bytes(one.header), bytes(one.payload))
    rounds.apply(0)
    exchange = rounds.peers.exchanges[0]
    assert exchange.arrivals.complete(ROUNDS)
    assert exchange.merger.applied_values > 0
    assert not victim.refusals.all
    assert not all(map(torch.equal, before, rounds.peers.models[0].parameters()))


def test_what_is_of_another_run_or_of_no_round_there_can_be_is_refused(population):
    rounds = LateRounds(population, RunConfig.resolve(n=3, p=1.0))
    rounds.step(1)
    one = rounds.peers.transports[0].receive(5)
    header, payload = headers.decode(one.header), bytes(one.payload)
    victim = Victim(rounds)
    arrivals = rounds.peers.exchanges[0].arrivals
    for changes in ({"round": ROUNDS + IN_ADVANCE + 1}, {"run": b"someelse"}):
        values = {name: getattr(header, name) for name in header.__dataclass_fields__} | changes
        victim.receive(headers.encode(type(header)(**values)), payload)
    assert list(victim.refusals.reasons) == ["of an impossible round", "of another run"]
    assert arrivals.newest == 0


def test_a_sender_who_proved_to_be_another_is_not_believed(population):
    rounds = LateRounds(population, RunConfig.resolve(n=3, p=1.0))
    rounds.step(1)
    one = rounds.peers.transports[0].receive(5)
    victim = Victim(rounds)
    victim.inbox.take(Message(one.header, one.payload, sender=2))
    assert victim.refusals.all[0][:2] == (2, "under another's name")
