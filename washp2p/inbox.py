"""A member's inbox: where arriving messages go, and waiting for what they bring.

All waiting on peers in the data plane is done here, on the training thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError, UsageError
from washp2p.frames import Chunk, Fetch, Frame, headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.connection import Connection
    from washp2p.exchange import Exchange
    from washp2p.rounds import Roster
    from washp2p.transfer import Transfer
    from washp2p.transports import Message, Transport

NOTICE_SECONDS = 10.0
"""How long a member waits in silence before it logs what it waits for."""

_log = logging.getLogger("washp2p")


class Inbox:
    """Hands arriving messages to the exchange and to state transfer."""

    def __init__(
        self,
        *,
        connection: Connection,
        transport: Transport,
        transfer: Transfer,
        exchange: Exchange,
        roster: Roster,
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._transfer = transfer
        self._exchange = exchange
        self._roster = roster
        self._last_round: int | None = None

    def end_rounds(self, last: int) -> None:
        """Take it as an error if a peer goes on after this member's `last` round."""
        self._last_round = last

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Handle what arrives until `condition` holds.

        Raises RunStoppedError, ProtocolError, and UsageError if a peer takes more steps.
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
            if self._last_round is None and time.monotonic() - silent_since >= NOTICE_SECONDS:
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
        if header.run != self._connection.run or header.sender not in self._roster.members:
            _log.warning("member %d ignored a message of another run", me)
            return
        match header:
            case Frame():
                if self._last_round is not None and header.round > self._last_round:
                    raise UsageError(
                        f"member {header.sender} has taken step {header.round}, member {me} ended "
                        f"after {self._last_round}; let all members take the same number of steps"
                    )
                self._exchange.accept(header, message.buffers)
            case Fetch():
                self._transfer.on_fetch(header)
            case Chunk():
                self._transfer.on_chunk(header, message.buffers)
