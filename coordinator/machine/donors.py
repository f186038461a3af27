"""Finds the members from which newcomers fetch their snapshots. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.commands import Event, Send, What
from washp2p.protocol.messages.from_coordinator import Donor, Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population
    from washp2p.protocol.roster import MemberId

NOT_FINITE = "values that are not finite"


class Donors:
    """Finds a donor for each newcomer of a population."""

    def __init__(self, population: Population) -> None:
        self._population = population

    def find_all(self) -> Iterator[Command]:
        """Find a donor for each newcomer that has none, or whose donor is lost.

        A newcomer that has refused the snapshots of all members is turned away. If all these
        snapshots had values that are not finite, the run stops instead.
        """
        population = self._population
        if not population.started or population.ended:
            return
        newcomers = population.attached()
        there = {m.id for m in population.enrolled()} if newcomers else set()
        for newcomer in newcomers:
            if newcomer.donor in there or newcomer.ready:
                continue
            if there and there <= newcomer.useless.keys():
                yield from self._give_up(newcomer)
            else:  # one that is not connected now may be of use
                yield from self.find(newcomer)

    def change(self, newcomer: KnownMember, donor: MemberId, what: str) -> None:
        """Record that `newcomer` cannot use the snapshot of `donor`, because of `what`.

        The newcomer then has no donor.
        """
        if newcomer.fetches_from(donor):
            newcomer.useless[donor] = what
            newcomer.donor = None

    def find(self, newcomer: KnownMember, without: MemberId | None = None) -> Iterator[Command]:
        """Have a newcomer fetch a snapshot from the member that has done the most rounds.

        This skips members that are not connected, members whose snapshot the newcomer could not
        use, and the member `without`. If no member is left, the newcomer has no donor.
        """
        refused = {*newcomer.useless, without}
        able = [m for m in self._population.enrolled() if m.connected and m.id not in refused]
        newcomer.donor = None
        if not able:
            return
        donor = max(able, key=lambda m: (m.rounds, -m.id))
        newcomer.donor = donor.id
        yield Send(donor.identity, Guest(newcomer.peer.row))
        yield Send(newcomer.identity, Donor(donor.peer.row))
        text = f"{newcomer} fetches a snapshot from member {donor.id}"
        yield Event(text, What.SNAPSHOT, newcomer.id)

    def _give_up(self, newcomer: KnownMember) -> Iterator[Command]:
        *_, what = newcomer.useless.values()
        if set(newcomer.useless.values()) == {NOT_FINITE}:
            reason = f"all members that {newcomer} asked for a snapshot sent {NOT_FINITE}"
            yield from self._population.stop(f"{reason} (a lower --lr may help)", 1)
        else:
            reason = f"no member's snapshot is of use to {newcomer}: {what}"
            yield from self._population.turn_away(newcomer, reason)
