"""Following the roster: whom the inbox connects to, lets go of, and loses patience with."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest

from tests.support.refusals import RecordedRefusals
from washp2p.protocol.messages.frames import Fetch, headers
from washp2p.protocol.messages.from_worker import CutOff, Stalled
from washp2p.protocol.patience import Patience
from washp2p.protocol.refusals import Reason
from washp2p.protocol.roster import Peer, Roster
from washp2p.rounds.arrivals import Arrivals
from washp2p.rounds.exchange import Exchange
from washp2p.rounds.inbox import AHEAD, GUESTS, Inbox
from washp2p.transports.base import Message, Transport
from washp2p.transports.transfer import Transfer

RUN = b"run id 1"


class Parts:
    """What an inbox hands things to: it records its calls, and has no other methods than the real.

    `broken_to` has the peers to which the link is broken, `waits` those that values are to come of.
    """

    def __init__(self):
        self.broken_to, self.waits, self.messages = set(), set(), []
        self.transport = create_autospec(Transport, instance=True, device="")
        self.transport.mended.return_value = ()
        self.transport.broken.side_effect = lambda peer: peer in self.broken_to
        self.transfer = create_autospec(Transfer, instance=True)
        self.arrivals = create_autospec(Arrivals, instance=True)
        self.arrivals.is_gone.return_value = False
        self.arrivals.waits_for.side_effect = lambda: self.waits
        self.exchange = create_autospec(Exchange, instance=True, arrivals=self.arrivals)


def roster(generation, *members):
    peers = tuple(Peer(member=m, endpoint=f"memory://{m}", host="") for m in members)
    return Roster(generation=generation, peers=peers)


class Clock:
    """A clock that a test advances."""

    now = 0.0

    def __call__(self):
        return self.now


def take(inbox, parts):
    """Hand the inbox what has come."""
    messages, parts.messages = parts.messages, []
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
    parts = Parts()
    inbox = Inbox(
        connection=connection,
        transport=parts.transport,
        transfer=parts.transfer,
        exchange=parts.exchange,
        refusals=RecordedRefusals(),
        clock=Clock(),
    )
    take(inbox, parts)
    return connection, parts, inbox


def calls(method):
    """The arguments of each call of a recorded method."""
    return [list(call.args) for call in method.call_args_list]


def test_peers_are_connected_to_once_and_let_go_of_when_they_are_gone(scene):
    connection, parts, inbox = scene
    assert calls(parts.transport.connect) == [[m, f"memory://{m}", b"", []] for m in (1, 2)]
    connection.state.rosters.append(roster(1, 0, 2, 3))
    connection.state.changes += 1
    take(inbox, parts)
    assert calls(parts.transport.connect)[2:] == [[3, "memory://3", b"", []]]
    assert calls(parts.arrivals.remove) == [[1]]
    assert calls(parts.transport.disconnect) == [[1]]


def test_who_came_and_went_between_two_looks_is_given_up_too(scene):
    connection, parts, inbox = scene
    connection.state.rosters += [roster(1, 0, 1, 2, 3), roster(2, 0, 1, 2)]
    connection.state.changes += 2
    take(inbox, parts)
    assert calls(parts.arrivals.remove) == [[3]]


def test_a_broken_link_costs_one_patience_and_a_slow_peer_is_reported_after_twelve(scene):
    connection, parts, inbox = scene
    parts.broken_to = {1}
    parts.waits = {1, 2}

    def whom():
        return parts.waits - {peer for (peer,) in calls(parts.arrivals.silence)}

    clock, patience = inbox._clock, connection.patience
    (wait,) = inbox.wait_until(lambda: False, whom, deadline=100.0)
    waiting = inbox.begin(wait)
    silenced, reported = [], []
    while len(reported) < 2:
        clock.now += patience.ping
        inbox.tick(waiting)
        at = clock.now / patience.seconds
        silenced += [at] * (len(calls(parts.arrivals.silence)) - len(silenced))
        reported += [at] * (len(connection.reported) - len(reported))
    assert silenced == [pytest.approx(1, abs=0.11)]
    assert calls(parts.arrivals.silence) == [[1]]
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
    connection, parts, inbox = scene
    for number in range(10, 10 + 3 * GUESTS):
        guest = Peer(number, f"memory://{number}")
        connection.state.take_guests = lambda guest=guest: [guest] * 2
        connection.state.changes += 1
        take(inbox, parts)
    assert len(inbox.guests) == GUESTS
    assert [peer for (peer,) in calls(parts.transport.disconnect)] == list(
        range(10, 10 + 2 * GUESTS)
    )


def fetch(sender, number):
    header = headers.encode(Fetch(RUN, sender, 0, "snapshot:3", number, 1))
    return Message(memoryview(header), memoryview(b""))


def test_what_comes_before_the_control_plane_has_told_of_its_sender_is_kept(scene):
    connection, parts, inbox = scene
    parts.messages = [fetch(3, 0), fetch(3, 1)]
    take(inbox, parts)
    assert calls(parts.transfer.on_fetch) == []
    connection.state.take_guests = lambda: [Peer(3, "memory://3")]
    connection.state.changes += 1
    parts.messages = [fetch(3, 2)]
    take(inbox, parts)
    assert [asked.offset for (asked,) in calls(parts.transfer.on_fetch)] == [0, 1, 2]
    assert not inbox._refusals.refused


def test_of_nobody_only_so_much_is_kept(scene):
    _, parts, inbox = scene
    parts.messages = [fetch(7, number) for number in range(AHEAD + 5)]
    take(inbox, parts)
    assert inbox._refusals.refused == {Reason.STRANGER: 5}


def test_members_that_share_a_gpu_are_told_so_and_take_another_way(scene, caplog):
    _, parts, inbox = scene
    parts.transport.device = "GPU-1"
    ways = [f"torch://127.0.0.1:1/GPU-{gpu}" for gpu in (1, 2)]
    for member, way in enumerate(ways, 7):
        near = (way, "ipc://@washp2p-1")
        inbox.link(Peer(member, "tcp://10.0.0.1:1", near=near, place="here"))
    taken = {member: way for member, way, *_ in calls(parts.transport.connect)}
    assert taken[7] == "ipc://@washp2p-1"
    assert taken[8] == ways[1]
    assert caplog.messages == [
        "member 0 shares its GPU with member 7: by ipc, since NCCL wants one each"
    ]


def test_what_is_meant_for_another_member_is_refused(scene):
    """Two members that advertise one address: in plain text nothing else tells."""
    _, parts, inbox = scene
    header = headers.encode(Fetch(RUN, 1, 2, "snapshot:3", 0, 1))
    parts.messages = [Message(memoryview(header), memoryview(b""))]
    take(inbox, parts)
    assert calls(parts.transfer.on_fetch) == []
    assert list(inbox._refusals.refused) == [Reason.ASTRAY]


def test_who_is_cut_off_is_named_again_in_each_roster(scene):
    """Votes are of one roster."""
    connection, parts, inbox = scene
    told = []
    connection.tell = told.append
    inbox._refusals.offenders[1] = "too much"
    parts.messages = [Message(memoryview(b"?"), memoryview(b""), 1)]
    take(inbox, parts)
    assert told == [CutOff(1, "too much")]
    connection.state.rosters.append(roster(1, 0, 1))
    connection.state.changes += 1
    take(inbox, parts)
    assert told == [CutOff(1, "too much")] * 2
    connection.state.rosters.append(roster(2, 0, 2))
    connection.state.changes += 1
    take(inbox, parts)
    assert told == [CutOff(1, "too much")] * 2
