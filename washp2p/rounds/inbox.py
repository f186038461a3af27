"""A member's inbox: distributes arriving messages, and gives up or reports peers that send none.

A driver hands over each message and says when time has passed. The inbox also follows the roster:
it stops waiting for members that are gone, and connects to new ones. Nothing here blocks.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError, UsageError
from washp2p.model.device_copies import as_bytes
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.frames import Chunk, End, Fetch, Frame, Posted, headers
from washp2p.protocol.messages.from_worker import CutOff, Stalled
from washp2p.protocol.refusals import Reason
from washp2p.rounds.waiting import Wait, Waiting, nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.messages.frames import Header
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId, Peer
    from washp2p.rounds.exchange import Exchange
    from washp2p.rounds.ports import ControlPlane
    from washp2p.rounds.waiting import Clock, Procedure
    from washp2p.transports.base import Message, Payload, Transport
    from washp2p.transports.transfer import Download, Transfer

GUESTS = 16
"""The most newcomers that a member gives snapshots to at the same time."""

IN_ADVANCE = 4096
"""Rounds by which a peer's frame may be ahead of the seeds known here: seeds may arrive late."""

AHEAD, AHEAD_BYTES = 1000, 64 << 20
"""The most messages, and bytes, kept until the coordinator tells that their senders are members."""

NOTICE_SECONDS = 10.0
"""How long a member waits in silence before it logs what it waits for."""

_log = logging.getLogger("washp2p")


class Inbox:
    """Passes each arriving message to its round, or to state transfer."""

    def __init__(
        self,
        *,
        connection: ControlPlane,
        transport: Transport,
        transfer: Transfer,
        exchange: Exchange,
        refusals: Refusals[MemberId],
        clock: Clock,
    ) -> None:
        self._refusals = refusals
        self._clock = clock
        self._connection = connection
        self._patience = connection.patience
        self._ping = self._patience.ping
        self._transport = transport
        self._transfer = transfer
        self._exchange = exchange
        self.arrivals = exchange.arrivals
        """The frames that have arrived, and the values still expected."""
        self._linked: dict[MemberId, Peer] = {}
        self._changes = -1
        self._seen = 0
        self._look_at = 0.0
        self._ahead: deque[Message] = deque()
        self._ahead_bytes = 0
        self.guests: list[Peer] = []
        """Newcomers that wait for a snapshot of this member."""
        self._cut_off: dict[MemberId, str] = {}
        self.out_of_reach: set[MemberId] = set()
        """Peers that this member has waited for in vain, because the link to them was broken."""

    def wait_until(
        self,
        condition: Callable[[], bool],
        peers: Callable[[], set[MemberId]] = nobody,
        deadline: float = inf,
    ) -> Procedure[None]:
        """Wait until `condition` holds; arguments are as in `Wait`. Raises RunStoppedError."""
        self.follow()
        if not condition():
            yield Wait(condition, peers, deadline)

    def begin(self, wait: Wait) -> Waiting:
        """Begin to count the time of a wait, which a procedure has yielded."""
        now = self._clock()
        return Waiting(wait, now, now, now + NOTICE_SECONDS)

    def is_over(self, waiting: Waiting) -> bool:
        """Whether a wait is over."""
        wait = waiting.wait
        return wait.condition() or (wait.deadline < inf and self._clock() >= wait.deadline)

    def tick(self, waiting: Waiting) -> None:
        """Act on the time that has passed in a wait, and on news from the coordinator.

        After one patience, missing values of a peer whose connection is broken are given up. Other
        awaited peers that are too slow or out of reach are reported to the coordinator, repeatedly.
        Raises RunStoppedError.
        """
        self.follow()
        now, peers = self._clock(), waiting.wait.peers
        if now - waiting.asked_anew > self._patience.stalled:  # that report may have been in vain
            waiting.asked_anew = now
            waiting.reported.clear()
        if now - waiting.began > self._patience.mute:
            told = self._lose_patience(peers() - waiting.reported, now - waiting.began)
            waiting.reported |= told
        if now > waiting.notice:
            waiting.notice = now + NOTICE_SECONDS
            self._say_what_is_missing(peers())

    def wait_for(self, downloads: list[Download], unless: Callable[[], bool]) -> Procedure[bool]:
        """Wait until all downloads are done. If `unless()` is True before that, give up the rest.

        Returns whether all are done. Raises as `wait_until`.
        """

        def here() -> bool:
            return all(download.done for download in downloads)

        yield from self.wait_until(lambda: here() or unless(), self._transfer.peers)
        if not here():
            self._transfer.cancel()
        return here()

    def fetch(
        self,
        peer: MemberId,
        what: str,
        into: dict[str, torch.Tensor],
        kind: Kind,
        unless: Callable[[], bool],
    ) -> Procedure[bool]:
        """Fill each `into[name]` with the peer's blob `<what>:<name>`. Otherwise as `wait_for`."""
        downloads = [
            self._transfer.fetch(peer, f"{what}:{name}", as_bytes(vector), kind=kind)
            for name, vector in into.items()
        ]
        return (yield from self.wait_for(downloads, unless))

    def link(self, peer: Peer) -> None:
        """Connect to a peer, if it is not connected yet."""
        if peer.member not in self._linked and peer.member != self._connection.member:
            self._linked[peer.member] = peer
            try:
                device = self._transport.device
                way, *otherwise = peer.ways(self._connection.place, device)
                if device != "cpu" and peer.shares(self._connection.place, device):
                    _log.warning(
                        "member %d shares its GPU with member %d: by %s, since NCCL wants one each",
                        self._connection.member,
                        peer.member,
                        way.partition(":")[0],
                    )
                self._transport.connect(peer.member, way, peer.key, otherwise)
            except UsageError as error:  # as good as a link that is broken
                _log.warning("member %d: %s", self._connection.member, error)
            else:
                self._exchange.greet(peer.member)

    def follow(self) -> None:
        """Handle roster changes, newcomers, and connections that work again.

        Raises RunStoppedError.
        """
        self._connection.check()
        if self._connection.state.changes != self._changes:
            self._changes = self._connection.state.changes
            self._follow_roster()
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + self._ping
            for peer in self._transport.mended():
                self.out_of_reach.discard(peer)
                self._exchange.resume(peer)
                self._transfer.again(peer)

    def _follow_roster(self) -> None:
        rosters = self._connection.state.rosters
        if rosters:
            news = len(rosters) > self._seen
            since, self._seen = rosters[max(0, self._seen - 1) :], len(rosters)
            members = rosters[-1].members
            # Some may have come and gone between two looks.
            for gone in {member for roster in since for member in roster.members}.difference(
                members
            ):
                self.arrivals.remove(gone)
                self._let_go(gone)
            for peer in rosters[-1].peers:
                self.link(peer)
            for offender in self._cut_off.keys() & set(members) if news else ():  # to vote anew
                self._connection.tell(CutOff(offender, self._cut_off[offender]))
            self.guests = [guest for guest in self.guests if guest.member not in members]
        for guest in self._connection.state.take_guests():
            self.guests = [known for known in self.guests if known.member != guest.member]
            self.link(guest)
            self.guests.append(guest)
            if len(self.guests) > GUESTS:  # nobody says which of them have gone
                self._let_go(self.guests.pop(0).member)
        ahead, self._ahead, self._ahead_bytes = self._ahead, deque(), 0
        for message in ahead:
            self.take(message)

    def _let_go(self, peer: MemberId) -> None:
        self._transport.disconnect(peer)
        self._linked.pop(peer, None)
        self._transfer.forget(peer)
        self.out_of_reach.discard(peer)

    def _lose_patience(self, whom: set[MemberId], waited: float) -> set[MemberId]:
        """Of the peers `whom`, give up the values of those whose connection is broken.

        Report others of them that are out of reach or too slow. Returns the reported peers.
        """
        reported = set()
        for peer in whom:
            broken = self._transport.broken(peer)
            if broken and peer in self.arrivals.waits_for():
                _log.warning(
                    "member %d: the link to member %d is broken, its values count as lost",
                    self._connection.member,
                    peer,
                )
                self.arrivals.silence(peer)
            elif broken or waited > self._patience.stalled:
                self.out_of_reach |= {peer} if broken else set()
                self._connection.tell(Stalled(peer, broken))
                reported.add(peer)
        return reported

    def _say_what_is_missing(self, whom: set[MemberId]) -> None:
        if whom:
            _log.warning(
                "member %d: nothing from %s for %.0f s",
                self._connection.member,
                ", ".join(
                    f"member {peer} ({self._linked[peer].endpoint})"
                    for peer in sorted(whom & self._linked.keys())
                ),
                NOTICE_SECONDS,
            )

    def take_all(self, messages: Iterable[Message]) -> None:
        """Handle roster changes as `follow` does, then `take` all messages. Called before a round.

        Raises RunStoppedError.
        """
        self.follow()
        for message in messages:
            self.take(message)

    def take(self, message: Message) -> None:
        """Pass a message on, or refuse it. No message from a peer can end this process."""
        me, sender = self._connection.member, message.sender
        try:
            header = headers.decode(message.header)
        except ProtocolError as error:
            self._refusals.refuse(sender, Reason.MALFORMED, f"member {me} got it: {error}")
        else:
            if header.run != self._connection.run:
                self._refusals.refuse(sender, Reason.RUN, f"member {me} got {header!r:.200}")
            elif sender is not None and header.sender != sender:
                self._refusals.refuse(
                    sender, Reason.SENDER, f"member {sender} sent {header!r:.200}"
                )
            elif header.receiver != me:
                what = f"it is meant for member {header.receiver}: do two advertise one address?"
                self._refusals.refuse(header.sender, Reason.ASTRAY, f"{header!r:.200}: {what}")
            elif not isinstance(header, Frame) and not isinstance(message.payload, memoryview):
                self._refusals.refuse(
                    header.sender, Reason.MALFORMED, f"{header!r:.200} and values"
                )
            elif header.sender not in self._linked and not self._knows(header.sender):
                self._keep(message)
            else:
                self._hand_on(header, message.payload)
        if self._refusals.offenders:
            self._cut_off_offenders()

    def _hand_on(self, header: Header, payload: Payload) -> None:
        match header:
            case Frame() if header.round > self._seeds_until + IN_ADVANCE:
                known = f"seeds are known up to {self._seeds_until}"
                self._refusals.refuse(header.sender, Reason.ROUND, f"{header!r:.200}: {known}")
            case Frame():
                self.arrivals.accept(header, payload)
            case End():
                self.arrivals.ended(header)
            case Posted():
                self.arrivals.posted(header.sender, (header.last, header.leg))
                self._transfer.again(header.sender)
            case Fetch():
                self._transfer.on_fetch(header)
            case Chunk():
                assert isinstance(payload, memoryview)
                self._transfer.on_chunk(header, payload)

    @property
    def _seeds_until(self) -> int:
        """The last round whose seed is published, as far as this member knows."""
        rosters = self._connection.state.rosters
        return max(self._connection.state.seeds.until, rosters[-1].first - 1 if rosters else 0)

    def _knows(self, sender: MemberId) -> bool:
        """Whether `sender` is or was a member, once roster changes have been handled."""
        self.follow()
        return sender in self._linked or self.arrivals.is_gone(sender)

    def _keep(self, message: Message) -> None:
        """Keep a message whose sender may be a member that this one has not heard of yet.

        If there are too many, the oldest are dropped.
        """
        self._ahead.append(message)
        self._ahead_bytes += message.payload.nbytes
        while len(self._ahead) > AHEAD or (
            self._ahead_bytes > AHEAD_BYTES and len(self._ahead) > 1
        ):
            oldest = self._ahead.popleft()
            self._ahead_bytes -= oldest.payload.nbytes
            header = headers.decode(oldest.header)
            self._refusals.refuse(oldest.sender, Reason.STRANGER, f"{header!r:.200}")

    def _cut_off_offenders(self) -> None:
        for peer, what in self._refusals.take_offenders().items():
            _log.warning("member %d cuts member %d off: %s", self._connection.member, peer, what)
            self.arrivals.remove(peer)
            self._transport.cut(peer, self._linked[peer].key if peer in self._linked else b"")
            self._cut_off[peer] = shortened(what)
            self._connection.tell(CutOff(peer, self._cut_off[peer]))
