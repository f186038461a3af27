"""A member's inbox: where arriving messages go, and waiting for what they bring.

All waiting on peers in the data plane is done here, on the training thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError
from washp2p.frames import Chunk, End, Fetch, Frame, headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.arrivals import Arrivals
    from washp2p.connection import Connection
    from washp2p.rounds import Roster
    from washp2p.transfer import Transfer
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
        arrivals: Arrivals,
        roster: Roster,
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._transfer = transfer
        self._arrivals = arrivals
        self._roster = roster
        self._members = frozenset(roster.members)
        self._patient = False

    def end_rounds(self) -> None:
        """Do not wonder at silence any longer: peers may have steps to take."""
        self._patient = True

    def drain(self) -> None:
        """Handle what has arrived. Does not block. Raises as `wait_until`."""
        self._connection.check()
        while (message := self._transport.receive(0)) is not None:
            self._dispatch(message)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Handle what arrives until `condition` holds.

        Raises RunStoppedError, ProtocolError.
        """
        self._connection.check()
        silent_since = time.monotonic()
        while not condition():
            message = self._transport.receive(NOTICE_SECONDS)
            if message is not None:
                self._dispatch(message)
                silent_since = time.monotonic()
                continue
            self._connection.check()
            if not self._patient and time.monotonic() - silent_since >= NOTICE_SECONDS:
                silent_since = time.monotonic()
                _log.warning(
                    "member %d: nothing from any peer for %.0f s; they are said to listen at %s",
                    self._connection.member,
                    NOTICE_SECONDS,
                    ", ".join(
                        f"{peer.endpoint} (member {peer.member})" for peer in self._roster.peers
                    ),
                )

    def _dispatch(self, message: Message) -> None:
        me = self._connection.member
        try:
            header = headers.decode(message.header)
        except ProtocolError as error:
            _log.warning("member %d ignored a message: %s", me, error)
            return
        if header.run != self._connection.run or header.sender not in self._members:
            _log.warning("member %d ignored a message of another run", me)
            return
        match header:
            case Frame():
                self._arrivals.accept(header, message.payload)
            case End():
                self._arrivals.ended(header)
            case Fetch():
                self._transfer.on_fetch(header)
            case Chunk():
                self._transfer.on_chunk(header, message.payload)
