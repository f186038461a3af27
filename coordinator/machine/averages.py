"""The averages of a run. No I/O.

Members begin an average together. An average stands, that is, counts as taken, once all members
hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.commands import Keep
from coordinator.machine.members import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population


def begin_average(
    population: Population, member: KnownMember, number: int, after: int
) -> Iterator[Command]:
    """Handle Averaging: a member has begun average `number` after round `after`.

    If another member has finished without this average, the run stops. An exception is a finished
    member that is not connected, or has sent its Accounts: it is dropped, and the run goes on.
    """
    member.averaging = max(member.averaging, (number, after))
    member.rounds = max(member.rounds, after)
    yield Keep(member)
    for other in population.enrolled():
        if other.phase >= Phase.FINISHED and other.averaging[0] < number:
            if not other.connected or other.phase is Phase.ACCOUNTED:
                yield from population.drop(other, f"ended with average {other.averaging[0]}")
                continue
            yield from population.stop(
                f"{member} takes average {number} after round {after}, and {other} has ended "
                f"its run with average {other.averaging[0]} after round {other.averaging[1]}; "
                "expected all to average as often, and after the same rounds",
                2,
            )
            return


def settle(population: Population, number: int, enrolled: list[KnownMember]) -> Iterator[Command]:
    """Record and announce that average `number` stands, because all members hold it."""
    population.settled, population.averages = population.roster, number
    after = {m.id: m.averaging[1] for m in enrolled}
    population.averaged_after = [after[m] for m in population.roster.members]
    yield Keep(("settled", population.roster.generation))
    yield Keep(("averages", [number, *population.averaged_after]))
    yield from population.tell(population.settlement(), enrolled)
