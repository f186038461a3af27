"""Complaints of members about each other, and what follows from them. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from coordinator.machine.donors import NOT_FINITE
from washp2p.protocol.messages.from_coordinator import Refuse
from washp2p.protocol.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.donors import Donors
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population
    from washp2p.protocol.roster import MemberId, Roster


class Votes:
    """Counts complaints of one kind. A new roster resets the count."""

    def __init__(self) -> None:
        self._generation = -1
        self._said: defaultdict[MemberId, set[MemberId]] = defaultdict(set)

    def cast(self, voter: MemberId, of: MemberId, roster: Roster) -> bool:
        """Count a complaint of `voter` about `of`.

        Returns whether more than half of the other members in `roster` now complain about `of`.
        """
        if self._generation != roster.generation:
            self._generation = roster.generation
            self._said.clear()
        if not {voter, of} <= set(roster.members):
            return False
        self._said[of].add(voter)
        return 2 * len(self._said[of]) > len(roster.members) - 1

    def has(self, voter: MemberId, of: MemberId) -> bool:
        """Whether `voter` has complained about `of`."""
        return voter in self._said[of]


class Waits:
    """Who waits for whom, as members have reported. A report that is not repeated expires."""

    def __init__(self, patience: Patience) -> None:
        self._reported_every = patience.stalled + patience.seconds
        self._since: dict[tuple[MemberId, MemberId], float] = {}

    def add(self, waiter: MemberId, slow: MemberId, now: float) -> None:
        """Record that `waiter` waits for `slow`. The record expires unless it is added again."""
        self._since[waiter, slow] = now

    def end(self, waiter: MemberId) -> None:
        """Record that `waiter` does not wait any more."""
        self._since = {wait: since for wait, since in self._since.items() if wait[0] != waiter}

    def causes(self, members: Iterable[MemberId], now: float) -> dict[MemberId, set[MemberId]]:
        """Return the members that hold others up, each with the members that it holds up.

        In a chain of waits, the last member, which waits for nobody, holds up all the others. If
        the chain is a circle, each member holds up those that wait for it directly.
        """
        there = set(members)
        awaited: defaultdict[MemberId, set[MemberId]] = defaultdict(set)
        for (waiter, slow), since in list(self._since.items()):
            if now - since > self._reported_every or not {waiter, slow} <= there:
                del self._since[waiter, slow]
            else:
                awaited[waiter].add(slow)
        found: defaultdict[MemberId, set[MemberId]] = defaultdict(set)
        for waiter, those in list(awaited.items()):
            seen, reached, last = {waiter}, set(those), set()
            while reached - seen:
                one = min(reached - seen)
                seen.add(one)
                reached |= awaited.get(one, set())
                if one not in awaited:
                    last.add(one)
            for cause in last or those:
                found[cause].add(waiter)
        return found


class Complaints:
    """Drops members that harm the others, once most of the others have complained."""

    def __init__(self, population: Population, donors: Donors) -> None:
        self._population = population
        self._donors = donors
        self._patience = Patience(population.config.operation.patience)
        self._complaints = Votes()
        self._offences = Votes()
        self._diagnoses = Votes()
        self._waits = Waits(self._patience)

    def stalled(
        self, member: KnownMember, slow: MemberId, *, broken: bool, now: float
    ) -> Iterator[Command]:
        """Handle Stalled: `member` waits too long for `slow`, or their connection is `broken`.

        If the connection works and `slow` is not the donor of `member`, the wait is only recorded:
        `tick` decides which member is too slow.
        """
        if broken or member.fetches_from(slow):
            yield from self.report(member, slow, self._too_slow)
        elif self._population.started:
            self._waits.add(member.id, slow, now)

    def heard(self, member: KnownMember, now: float) -> None:
        """Record that the training loop of `member` has said something: it waits for nobody."""
        member.heard_at = now
        self._waits.end(member.id)

    def tick(self, now: float) -> Iterator[Command]:
        """Drop a member that holds up most others and whose training loop is silent for too long.

        "Most others" leaves out members that wait for seeds, such as newcomers: the slow member
        delays the seeds, too. Of two silent members that wait for each other, drop the one with the
        larger id. A call drops one member at most.
        """
        population = self._population
        if not population.started or population.ended:
            return
        enrolled = {m.id: m for m in population.enrolled()}
        causes = self._waits.causes(enrolled, now)
        if not causes:
            return
        there = {
            m for r in population.rosters if r.first <= population.published for m in r.members
        }
        can_go_on = {m.id for m in enrolled.values() if m.rounds < population.published} & there
        for slow in sorted(causes, reverse=True):
            held_up = causes[slow]
            most = 2 * len(held_up) > len((can_go_on | held_up) - {slow})
            mutual = any(other < slow and slow in causes.get(other, ()) for other in held_up)
            if (most or mutual) and not self._lives(enrolled[slow], now):
                yield from population.expel(enrolled[slow], self._too_slow)
                return  # the next tick finds others

    @property
    def _too_slow(self) -> str:
        return (
            f"kept most others waiting longer than {self._patience.stalled:g} s (twelve times "
            "--patience; raise it, or use member.busy() around long work)"
        )

    def report(
        self, member: KnownMember, slow: MemberId, reason: str, *, for_good: bool = False
    ) -> Iterator[Command]:
        """Count a complaint about `slow`, and drop `slow` once most of the others complain.

        If two members complain about each other, drop the one with the larger id. `for_good` says
        that `slow` has sent invalid messages: then the rule of the larger id does not apply to the
        two, and `slow`, once dropped, may not join again. A newcomer that complains about its donor
        gets another donor.
        """
        population = self._population
        if member.fetches_from(slow):
            yield from self._donors.find(member, without=slow)
        enrolled = {m.id: m for m in population.enrolled()}
        if for_good:
            self._offences.cast(member.id, slow, population.roster)
        charged = self._offences.has(slow, member.id) or for_good
        if self._complaints.cast(member.id, slow, population.roster):
            offender = enrolled[slow]
        elif not charged and self._complaints.has(slow, member.id):
            offender = enrolled[max(slow, member.id)]
            reason = f"and member {min(slow, member.id)} kept each other waiting too long"
        else:
            return
        answer = Refuse(f"{offender} {reason}") if for_good else None
        yield from population.expel(offender, reason, answer)

    def diverged(self, reporter: KnownMember, sick: MemberId) -> Iterator[Command]:
        """Handle Diverged: a member reports that `sick` sends values that are not finite.

        Once most members report it, do what `--on-divergence` says.
        """
        population = self._population
        if reporter.fetches_from(sick):
            self._donors.change(reporter, sick, NOT_FINITE)
            return
        believed = self._diagnoses.cast(reporter.id, sick, population.roster)
        member = next((m for m in population.enrolled() if m.id == sick), None)
        if not believed or member is None:
            return
        what = f"sent {NOT_FINITE} (a lower --lr may help)"
        match population.config.operation.on_divergence:
            case "stop":
                reason = f"{member} {what}; see --on-divergence"
                yield from population.stop(reason, 1)
            case "drop":
                reason = f"{member} {what}, and was dropped by --on-divergence=drop"
                yield from population.expel(member, what, Refuse(reason))
            case _:
                yield from population.expel(member, what)

    def _lives(self, member: KnownMember, now: float) -> bool:
        """Whether a member's training loop has reported lately, is busy, or is not connected.

        The limit for "lately" leaves a member that waits for another one the time to report that.
        """
        patience = self._patience
        recent = now - member.heard_at < patience.stalled + 4 * patience.ping
        return recent or now < member.busy_until or not member.connected
