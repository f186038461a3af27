"""Complaints of members about each other, and what follows from them. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from coordinator.machine.donors import NOT_FINITE
from washp2p.protocol.messages.from_coordinator import Refuse
from washp2p.protocol.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """The waits that members have reported. A new roster clears them."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: dict[tuple[MemberId, MemberId], float] = {}
        self._new: set[tuple[MemberId, MemberId]] = set()
        self._generation = -1

    def add(self, waiter: MemberId, slow: MemberId, roster: Roster, now: float) -> None:
        """Record that `waiter` waits for `slow`."""
        if self._generation != roster.generation:
            self._generation = roster.generation
            self._since.clear()
            self._new.clear()
        self._since[waiter, slow] = now
        self._new.add((waiter, slow))

    def ripe(self, now: float) -> list[tuple[MemberId, MemberId]]:
        """Return the new waits that are old enough to judge, as pairs (waiter, slow).

        By then the slow member has had time to report its own wait. Each wait is returned once. A
        wait that is not reported again expires.
        """
        again = self._patience.stalled + self._patience.seconds
        self._since = {wait: since for wait, since in self._since.items() if now - since < again}
        found = [
            wait
            for wait, since in self._since.items()
            if wait in self._new and now - since >= 4 * self._patience.ping
        ]
        self._new.difference_update(found)
        return found

    def causes(self, waiter: MemberId, slow: MemberId) -> set[MemberId]:
        """Return the members that hold up `waiter`.

        That is `slow`, unless `slow` waits for other members itself; then it is those that hold up
        `slow`.
        """
        seen, last, reached = {waiter, slow}, set(), [slow]
        while reached:
            one = reached.pop()
            awaited = {other for who, other in self._since if who == one}
            if not awaited:
                last.add(one)
            reached += sorted(awaited - seen)
            seen |= awaited
        return last or {slow}  # they wait for each other


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

        If the connection works, `tick` looks for the one that both wait for.
        """
        if broken or member.fetches_from(slow):
            yield from self.report(member, slow, self._too_slow)
        elif self._population.started:
            self._waits.add(member.id, slow, self._population.roster, now)

    def tick(self, now: float) -> Iterator[Command]:
        """Count the complaints about members whose training loop is silent.

        A member that is busy, or waits for another one, is not slow.
        """
        for waiter, slow in self._waits.ripe(now):
            for cause in sorted(self._waits.causes(waiter, slow)):
                member = next((m for m in self._population.enrolled() if m.id == waiter), None)
                if member is not None and not self._lives(cause, now):
                    yield from self.report(member, cause, self._too_slow)

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

        If two members wait for each other, drop the one with the larger id. With `for_good`, `slow`
        has offended: its own complaints about `member` count for nothing then, and it may not join
        again. A newcomer that complains about its donor gets another.
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

    def _lives(self, member_id: MemberId, now: float) -> bool:
        """Whether a member's training loop has reported lately, or has said that it is busy."""
        for member in self._population.enrolled():
            if member.id == member_id:
                recent = now - member.heard_at < self._patience.stalled / 2
                return recent or now < member.busy_until
        return False
