"""The end of a run for one member: the average over all that live, and what they ended with.

Whenever a member is lost before all have the average, the others begin anew without it; once the
coordinator says that it stands, it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from washp2p import points
from washp2p.evaluation.average import average_peer_to_peer
from washp2p.lanes import as_bytes
from washp2p.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.connection import Connection
    from washp2p.evaluation.average import Sections
    from washp2p.inbox import Inbox
    from washp2p.rounds import MemberId, Roster
    from washp2p.transfer import Transfer


class _RosterChangedError(Exception):
    """A member was lost: begin anew."""


class Finale:
    """What a member does after its last round. `sections` is its final state, never to change."""

    def __init__(
        self, sections: Sections, *, connection: Connection, inbox: Inbox, transfer: Transfer
    ) -> None:
        self.sections = sections
        self._connection = connection
        self._inbox = inbox
        self._transfer = transfer
        for name, vector in sections.items():
            transfer.offer(f"final:{name}", as_bytes(vector), Kind.AVERAGE)

    def average(self) -> tuple[Sections, Roster]:
        """The mean, and of whom. Collective; blocks until all have it. Raises RunStoppedError."""
        while True:
            self._transfer.cancel()
            roster = self._connection.roster
            points.reach(points.AVERAGING)
            try:
                return self._average_over(roster), roster
            except _RosterChangedError:
                continue

    def leads(self) -> bool:
        """Whether this member is to evaluate; blocks until some other has, or it falls to it."""
        connection = self._connection

        def known() -> bool:
            first = connection.roster.members[0]
            return connection.evaluated or connection.over or first == connection.member

        self._inbox.wait_until(known)
        falls_to_me = not (connection.evaluated or connection.over)
        if falls_to_me:
            points.reach(points.EVALUATING)
        return falls_to_me

    def of(self, member: MemberId) -> Sections | None:
        """What a member ended with, fetched from it; None if it is gone or out of reach. Blocks."""
        if member == self._connection.member:
            return self.sections
        sections = {name: torch.empty_like(vector) for name, vector in self.sections.items()}

        def gone() -> bool:
            there = member in self._connection.roster.members
            return not there or member in self._inbox.out_of_reach

        came = self._inbox.fetch(member, "final", sections, Kind.AVERAGE, gone)
        return sections if came else None

    def _average_over(self, roster: Roster) -> Sections:
        connection = self._connection

        def changed() -> bool:
            return connection.roster is not roster and connection.settled != roster.epoch

        def wait_until(condition: Callable[[], bool]) -> None:
            self._inbox.wait_until(lambda: condition() or changed(), self._transfer.peers)
            if changed():
                raise _RosterChangedError

        averaged = average_peer_to_peer(
            self.sections,
            transfer=self._transfer,
            members=roster.members,
            me=connection.member,
            attempt=roster.epoch,
            wait_until=wait_until,
        )
        connection.averaged(roster.epoch)
        wait_until(lambda: connection.settled == roster.epoch)
        return averaged
