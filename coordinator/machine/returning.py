"""What a member has missed that was not connected for a while. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.averages import settled
from coordinator.machine.commands import Send
from coordinator.machine.members import Phase
from washp2p.protocol.messages.from_coordinator import Evaluated, Finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population


def missed_by(
    population: Population, member: KnownMember, generations: int, seeds: int
) -> Iterator[Command]:
    """Send `member` the rosters, seeds and results that it has not heard of.

    It knows rosters of generations below `generations`, and seeds up to that of round `seeds`.
    """
    its = [roster for roster in population.rosters if member.id in roster.members]
    for roster in its:
        if roster.generation >= generations:
            yield Send(member.identity, population.announcement(roster))
    if its:
        missed = range(max(its[0].first, seeds + 1), population.published + 1)
        for message in population.publication.messages(population.rosters, missed):
            yield Send(member.identity, message)
    if population.settled is not None:
        yield Send(member.identity, settled(population))
    if population.accuracy:
        yield Send(member.identity, Evaluated(population.accuracy["number"]))
    enrolled = population.enrolled()
    if enrolled and all(m.phase >= Phase.FINISHED for m in enrolled):
        yield Send(member.identity, Finish())
