"""A member's inbox: where arriving messages go, and waiting for what they bring.

All waiting on peers in the data plane is done here, on the training thread; so is following the
roster: who is gone is waited for no longer, who is new is connected to.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError
from washp2p.frames import Chunk, End, Fetch, Frame, Posted, headers
from washp2p.lanes import as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.connection import Connection
    from washp2p.evaluation.average import Sections
    from washp2p.exchange import Exchange
    from washp2p.ledger import Kind
    from washp2p.rounds import MemberId, Peer
    from washp2p.transfer import Download, Transfer
    from washp2p.transports import Message, Transport

NOTICE_SECONDS = 10.0
"""How long a member waits in silence before it logs what it waits for."""

_log = logging.getLogger("washp2p")


class Inbox:
    """Hands arriving messages to the round they belong to, or to state transfer."""

    def __init__(
        self,
        *,
        connection: Connection,
        transport: Transport,
        transfer: Transfer,
        exchange: Exchange,
    ) -> None:
        self._connection = connection
        self._patience = connection.patience
        self._ping = self._patience.ping
        self._transport = transport
        self._transfer = transfer
        self._exchange = exchange
        self.arrivals = exchange.arrivals
        """What has come of the rounds, and what is to come."""
        self._linked: dict[MemberId, Peer] = {}
        self._changes = -1
        self._seen = 0
        self._look_at = 0.0
        self.guests: list[Peer] = []
        """Newcomers that wait for a snapshot of this member."""
        self.out_of_reach: set[MemberId] = set()
        """Peers that were waited for in vain, the link to them being broken."""

    def drain(self) -> None:
        """Handle what has arrived. Does not block. Raises as `wait_until`."""
        self._follow()
        while (message := self._transport.receive(0)) is not None:
            self._dispatch(message)

    def wait_until(
        self, condition: Callable[[], bool], whom: Callable[[], set[MemberId]] = set
    ) -> None:
        """Handle what arrives until `condition` holds.

        `whom` tells which peers it takes: one to which the link is broken is waited for no longer
        than patience allows, one that is too slow is reported to the coordinator. Raises
        RunStoppedError, ProtocolError.
        """
        self._follow()
        began = time.monotonic()
        notice = began + NOTICE_SECONDS
        reported: set[MemberId] = set()
        while not condition():
            message = self._transport.receive(self._ping)
            if message is not None:
                self._dispatch(message)
                continue
            self._follow()  # whatever the control plane brings interrupts `receive`
            now = time.monotonic()
            if now - began > self._patience.mute:
                reported |= self._lose_patience(whom() - reported, now - began)
            if now > notice:
                notice = now + NOTICE_SECONDS
                self._say_what_is_missing(whom())

    def wait_for(self, downloads: list[Download], unless: Callable[[], bool]) -> bool:
        """Block until all has come, or `unless` holds; then what has not come is given up.

        Whether all has come. Raises as `wait_until`.
        """

        def here() -> bool:
            return all(download.done for download in downloads)

        self.wait_until(lambda: here() or unless(), self._transfer.peers)
        if not here():
            self._transfer.cancel()
        return here()

    def fetch(
        self,
        peer: MemberId,
        what: str,
        into: Sections,
        kind: Kind,
        unless: Callable[[], bool],
    ) -> bool:
        """Fill tensors with the peer's blobs `<what>:<name>`; as `wait_for`."""
        downloads = [
            self._transfer.fetch(peer, f"{what}:{name}", as_bytes(vector), kind=kind)
            for name, vector in into.items()
        ]
        return self.wait_for(downloads, unless)

    def link(self, peer: Peer) -> None:
        """Connect to a peer, unless it is connected."""
        if peer.member not in self._linked and peer.member != self._connection.member:
            self._linked[peer.member] = peer
            self._transport.connect(peer.member, peer.endpoint)
            self._exchange.greet(peer.member)

    def _follow(self) -> None:
        """Take note of what the control plane has brought, and of links that broke."""
        self._connection.check()
        if self._connection.changes != self._changes:
            self._changes = self._connection.changes
            self._follow_roster()
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._ping
            for peer in self._transport.mended():
                self.out_of_reach.discard(peer)
                self._exchange.resume(peer)
                self._transfer.again(peer)

    def _follow_roster(self) -> None:
        rosters = self._connection.rosters
        if rosters:
            since, self._seen = rosters[max(0, self._seen - 1) :], len(rosters)
            members = rosters[-1].members
            # Some may have come and gone between two looks.
            for gone in {member for roster in since for member in roster.members}.difference(
                members
            ):
                self.arrivals.remove(gone)
                self._transport.disconnect(gone)
                self._linked.pop(gone, None)
                self.out_of_reach.discard(gone)
            for peer in rosters[-1].peers:
                self.link(peer)
            self.guests = [guest for guest in self.guests if guest.member not in members]
        for guest in self._connection.take_guests():
            self.link(guest)
            self.guests.append(guest)

    def _lose_patience(self, whom: set[MemberId], waited: float) -> set[MemberId]:
        """Deal with peers that have been waited for long; which were reported."""
        reported = set()
        for peer in whom:
            broken = self._transport.broken(peer)
            if broken and peer in self.arrivals.waits_for(self._exchange.posted):
                _log.warning(
                    "member %d: the link to member %d is broken, its values count as lost",
                    self._connection.member,
                    peer,
                )
                self.arrivals.silence(peer)
            elif broken or waited > self._patience.stalled:
                self.out_of_reach |= {peer} if broken else set()
                self._connection.stalled(peer)
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

    def _dispatch(self, message: Message) -> None:
        me = self._connection.member
        try:
            header = headers.decode(message.header)
        except ProtocolError as error:
            _log.warning("member %d ignored a message: %s", me, error)
            return
        if header.run != self._connection.run:
            _log.warning("member %d ignored a message of another run", me)
            return
        match header:
            case Frame():
                self.arrivals.accept(header, message.payload)
            case End():
                self.arrivals.ended(header)
            case Posted():
                self.arrivals.posted(header.sender, header.last)
                self._transfer.again(header.sender)
            case Fetch():
                self._transfer.on_fetch(header)
            case Chunk():
                self._transfer.on_chunk(header, message.payload)
