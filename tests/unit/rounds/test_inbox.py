"""Following the roster: whom the inbox connects to, lets go of, and loses patience with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.refusals import RecordedRefusals
from washp2p.protocol.messages.frames import Fetch, headers
from washp2p.protocol.messages.from_worker import CutOff, Stalled
from washp2p.protocol.patience import Patience
from washp2p.protocol.refusals import Reason
from washp2p.protocol.roster import Peer, Roster
from washp2p.rounds.inbox import AHEAD, GUESTS, Inbox
from washp2p.transports.base import Message

RUN = b"run id 1"


class Recorder:
    """Writes down what is called on it; `broken` links are those named so."""

    device = ""

    def __init__(self):
        self.calls = []
        self.broken_to = set()
        self.waits = set()
        self.arrivals = self
        self.messages = []

    def is_gone(self, peer):
        return False

    def mended(self):
        return []

    def broken(self, peer):
        return peer in self.broken_to

    def waits_for(self):
        return self.waits

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, *values))


def roster(generation, *members):
    peers = tuple(Peer(member=m, endpoint=f"memory://{m}", host="") for m in members)
    return Roster(generation=generation, peers=peers)


class Clock:
    """A clock that a test advances."""

    now = 0.0

    def __call__(self):
        return self.now


def take(inbox, wire):
    """Hand the inbox what has come."""
    messages, wire.messages = wire.messages, []
    inbox.take_all(messages)


@pytest.fixture
def scene():
    connection = SimpleNamespace(
        patience=Patience(0.1),
        member=0,
        run=RUN,
        place="here",
        state=SimpleNamespace(rosters=[roster(0, 0, 1, 2)], changes=1, take_guests=list),
        check=lambda: None,
    )
    connection.reported = []

    def tell(message):
        assert isinstance(message, Stalled)
        connection.reported.append(message.member)

    connection.tell = tell
    wire = Recorder()
    inbox = Inbox(
        connection=connection,
        transport=wire,
        transfer=wire,
        exchange=wire,
        refusals=RecordedRefusals(),
        clock=Clock(),
    )
    take(inbox, wire)
    return connection, wire, inbox


def calls(wire, name):
    return [values for called, *values in wire.calls if called == name]


def test_peers_are_connected_to_once_and_let_go_of_when_they_are_gone(scene):
    connection, wire, inbox = scene
    assert calls(wire, "connect") == [[m, f"memory://{m}", b"", []] for m in (1, 2)]
    connection.state.rosters.append(roster(1, 0, 2, 3))
    connection.state.changes += 1
    take(inbox, wire)
    assert calls(wire, "connect")[2:] == [[3, "memory://3", b"", []]]
    assert calls(wire, "remove") == [[1]]
    assert calls(wire, "disconnect") == [[1]]


def test_who_came_and_went_between_two_looks_is_given_up_too(scene):
    connection, wire, inbox = scene
    connection.state.rosters += [roster(1, 0, 1, 2, 3), roster(2, 0, 1, 2)]
    connection.state.changes += 2
    take(inbox, wire)
    assert calls(wire, "remove") == [[3]]


def test_a_broken_link_costs_one_patience_and_a_slow_peer_is_reported_after_twelve(scene):
    connection, wire, inbox = scene
    wire.broken_to = {1}
    wire.waits = {1, 2}

    def whom():
        return wire.waits - {peer for (peer,) in calls(wire, "silence")}

    clock, patience = inbox._clock, connection.patience
    (wait,) = inbox.wait_until(lambda: False, whom, deadline=100.0)
    waiting = inbox.begin(wait)
    silenced, reported = [], []
    while len(reported) < 2:
        clock.now += patience.ping
        inbox.tick(waiting)
        at = clock.now / patience.seconds
        silenced += [at] * (len(calls(wire, "silence")) - len(silenced))
        reported += [at] * (len(connection.reported) - len(reported))
    assert silenced == [pytest.approx(1, abs=0.11)]
    assert calls(wire, "silence") == [[1]]
    assert reported[0] == pytest.approx(12, abs=0.11)
    assert reported[1] == pytest.approx(24, abs=0.21)  # the first report may have been in vain
    assert connection.reported == [2, 2]


def test_a_wait_is_over_at_its_deadline(scene):
    _, _, inbox = scene
    (wait,) = inbox.wait_until(lambda: False, deadline=3.0)
    waiting = inbox.begin(wait)
    assert not inbox.is_over(waiting)
    inbox._clock.now = 3.0
    assert inbox.is_over(waiting)
    assert list(inbox.wait_until(lambda: True)) == []


def test_newcomers_that_nobody_hears_of_again_are_let_go(scene):
    connection, wire, inbox = scene
    for number in range(10, 10 + 3 * GUESTS):
        guest = Peer(number, f"memory://{number}")
        connection.state.take_guests = lambda guest=guest: [guest] * 2
        connection.state.changes += 1
        take(inbox, wire)
    assert len(inbox.guests) == GUESTS
    assert [peer for (peer,) in calls(wire, "disconnect")] == list(range(10, 10 + 2 * GUESTS))


def fetch(sender, number):
    header = headers.encode(Fetch(RUN, sender, 0, "snapshot:3", number, 1))
    return Message(memoryview(header), memoryview(b""))


def test_what_comes_before_the_control_plane_has_told_of_its_sender_is_kept(scene):
    connection, wire, inbox = scene
    wire.messages = [fetch(3, 0), fetch(3, 1)]
    take(inbox, wire)
    assert calls(wire, "on_fetch") == []
    connection.state.take_guests = lambda: [Peer(3, "memory://3")]
    connection.state.changes += 1
    wire.messages = [fetch(3, 2)]
    take(inbox, wire)
    assert [asked.offset for (asked,) in calls(wire, "on_fetch")] == [0, 1, 2]
    assert not inbox._refusals.refused


def test_of_nobody_only_so_much_is_kept(scene):
    _, wire, inbox = scene
    wire.messages = [fetch(7, number) for number in range(AHEAD + 5)]
    take(inbox, wire)
    assert inbox._refusals.refused == {Reason.STRANGER: 5}


def test_members_that_share_a_gpu_are_told_so_and_take_another_way(scene, caplog):
    _, wire, inbox = scene
    wire.device = "GPU-1"
    ways = [f"torch://127.0.0.1:1/GPU-{gpu}" for gpu in (1, 2)]
    for member, way in enumerate(ways, 7):
        near = (way, "ipc://@washp2p-1")
        inbox.link(Peer(member, "tcp://10.0.0.1:1", near=near, place="here"))
    taken = {member: way for member, way, *_ in calls(wire, "connect")}
    assert taken[7] == "ipc://@washp2p-1"
    assert taken[8] == ways[1]
    assert caplog.messages == [
        "member 0 shares its GPU with member 7: by ipc, since NCCL wants one each"
    ]


def test_what_is_meant_for_another_member_is_refused(scene):
    """Two members that advertise one address: in plain text nothing else tells."""
    _, wire, inbox = scene
    header = headers.encode(Fetch(RUN, 1, 2, "snapshot:3", 0, 1))
    wire.messages = [Message(memoryview(header), memoryview(b""))]
    take(inbox, wire)
    assert calls(wire, "on_fetch") == []
    assert list(inbox._refusals.refused) == [Reason.ASTRAY]


def test_who_is_cut_off_is_named_again_in_each_roster(scene):
    """Votes are of one roster."""
    connection, wire, inbox = scene
    told = []
    connection.tell = told.append
    inbox._refusals.offenders[1] = "too much"
    wire.messages = [Message(memoryview(b"?"), memoryview(b""), 1)]
    take(inbox, wire)
    assert told == [CutOff(1, "too much")]
    connection.state.rosters.append(roster(1, 0, 1))
    connection.state.changes += 1
    take(inbox, wire)
    assert told == [CutOff(1, "too much")] * 2
    connection.state.rosters.append(roster(2, 0, 2))
    connection.state.changes += 1
    take(inbox, wire)
    assert told == [CutOff(1, "too much")] * 2
