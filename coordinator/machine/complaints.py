"""What members say against each other, and what the coordinator makes of it. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from washp2p.protocol.messages.from_coordinator import Refuse
from washp2p.protocol.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.admission import Admission
    from coordinator.machine.commands import Command
    from coordinator.machine.members import Member
    from coordinator.machine.population import Population
    from washp2p.protocol.roster import MemberId, Roster


class Votes:
    """Complaints of one kind; a new roster makes those of the last one void."""

    def __init__(self) -> None:
        self._generation = -1
        self._said: defaultdict[MemberId, set[MemberId]] = defaultdict(set)

    def cast(self, voter: MemberId, of: MemberId, roster: Roster) -> bool:
        """`voter` complains of another; whether by now most others in the roster do."""
        if self._generation != roster.generation:
            self._generation = roster.generation
            self._said.clear()
        if not {voter, of} <= set(roster.members):
            return False
        self._said[of].add(voter)
        return 2 * len(self._said[of]) > len(roster.members) - 1

    def has(self, voter: MemberId, of: MemberId) -> bool:
        """Whether `voter` has complained of another."""
        return voter in self._said[of]


class Complaints:
    """Drops members that do the others no good; most of the others have to say so."""

    def __init__(self, population: Population, admission: Admission) -> None:
        self._population = population
        self._admission = admission
        self._patience = Patience(population.config.patience)
        self._complaints = Votes()
        self._diagnoses = Votes()

    def stalled(
        self, member: Member, slow: MemberId, *, broken: bool, now: float
    ) -> Iterator[Command]:
        """A member waits for another, which is too slow or to which its link is `broken`."""
        if broken or not self._lives(slow, now) or member.fetches_from(slow):
            reason = f"kept most others waiting longer than {self._patience.stalled:g} s"
            cure = "twelve times --patience; raise it, or use member.busy() around long work"
            yield from self.report(member, slow, f"{reason} ({cure})")

    def report(
        self, member: Member, slow: MemberId, reason: str, *, for_good: bool = False
    ) -> Iterator[Command]:
        """Drop whom most of the others complain of; of two who do of each other: the later."""
        population = self._population
        if member.fetches_from(slow):
            yield from self._admission.find_donor(member, without=slow)
        enrolled = {m.id: m for m in population.enrolled()}
        if self._complaints.cast(member.id, slow, population.roster):
            offender = enrolled[slow]
        elif self._complaints.has(slow, member.id):
            offender = enrolled[max(slow, member.id)]
            reason = f"and member {min(slow, member.id)} kept each other waiting too long"
        else:
            return
        answer = Refuse(f"{offender} {reason}") if for_good else None
        yield from population.expel(offender, reason, answer)

    def diverged(self, reporter: Member, sick: MemberId) -> Iterator[Command]:
        """Most have been sent values that are not finite: `--on-divergence` says what to do."""
        population = self._population
        if reporter.fetches_from(sick):
            reporter.useless.add(sick)
            yield from self._admission.find_donor(reporter)
            if reporter.donor is None:
                yield from population.stop(
                    f"member {sick} sent values that are not finite, as had all others that "
                    f"{reporter} asked for a snapshot (a lower --lr may help)",
                    1,
                )
            return
        else:
            believed = self._diagnoses.cast(reporter.id, sick, population.roster)
        member = next((m for m in population.enrolled() if m.id == sick), None)
        if not believed or member is None:
            return
        what = "sent values that are not finite (a lower --lr may help)"
        match population.config.on_divergence:
            case "stop":
                reason = f"{member} {what}; see --on-divergence"
                yield from population.stop(reason, 1)
            case "drop":
                reason = f"{member} {what}, and was dropped by --on-divergence=drop"
                yield from population.expel(member, what, Refuse(reason))
            case _:
                yield from population.expel(member, what)

    def refuse_donor(self, newcomer: Member, donor: MemberId, what: str) -> Iterator[Command]:
        """A newcomer cannot use a snapshot: it gets another member's, or none."""
        if newcomer.fetches_from(donor):
            newcomer.useless.add(donor)
            yield from self._admission.find_donor(newcomer)
            if newcomer.donor is None:
                reason = f"no member's snapshot is of use to {newcomer}: {what}"
                yield from self._admission.turn_away(newcomer, reason)

    def _lives(self, member_id: MemberId, now: float) -> bool:
        """Whether a member's loop is known to live: it has said so of late, or that it is busy."""
        for member in self._population.enrolled():
            if member.id == member_id:
                recent = now - member.heard_at < self._patience.stalled / 2
                return recent or now < member.busy_until
        return False
