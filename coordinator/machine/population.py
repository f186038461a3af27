"""The members, the rosters, and the steps by which both change. No I/O.

A member that is lost after the start is dropped. A new roster without that member begins at the
first round whose seed is not published yet. So all members change rosters at the same round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.machine.commands import EndRun, Event, Keep, Send, What
from coordinator.machine.members import Departed, Phase
from coordinator.machine.publication import Publication
from washp2p.protocol.messages.from_coordinator import (
    Discard,
    Dropped,
    Evaluated,
    Finish,
    Kept,
    NewRoster,
    Refuse,
    Settled,
    Stop,
)
from washp2p.protocol.roster import Roster, roster_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember, Past
    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.roster import MemberId

NOTICES = 100
"""The largest number of notices that are kept."""


class Population:
    """All that the coordinator has to know about the members of a run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.expected = config.n
        """The number of members with which the run starts, unless `min_n` allows fewer."""
        self.members: dict[bytes, KnownMember] = {}
        """All members that were welcomed and are not lost, by ZeroMQ identity."""
        self.departed: list[Departed] = []
        self.history: list[Roster] = []
        """Rosters up to the checkpoint that the run went on from. No member uses them any more."""
        self.rosters: list[Roster] = []
        """Rosters since the run last went on from a checkpoint, or else since the first round."""
        self.next_generation = 0
        self.given: set[MemberId] = set()
        """All ids given so far. A run gives each id only once, even if its coordinator changes."""
        self.total_rounds = 0
        """0 if not known."""
        self.publication = Publication(config)
        self.kept = 0
        """The round of the last checkpoint that all had, 0 if there is none."""
        self.settled: Roster | None = None
        """The roster over which the members were averaged last."""
        self.averages = 0
        """How often they were averaged."""
        self.averaged_after: list[int] = []
        """For each of the `settled` members, in order: the round after which it averaged last."""
        self.notices: list[dict[str, Any]] = []
        """What members think that people should know."""
        self.accuracy: dict[str, Any] = {}
        self.ended = False

    def recall(self, past: Past) -> None:
        """Take over the state in a journal."""
        self.members = {member.identity: member for member in past.members}
        self.departed = list(past.departed)
        self.history = [roster for roster in past.rosters if roster.generation < past.life]
        self.rosters = [roster for roster in past.rosters if roster.generation >= past.life]
        self.next_generation = self.roster.generation + 1
        self.given = set(past.given)
        self.total_rounds = past.total_rounds
        self.settled, self.accuracy = past.settled, past.accuracy
        self.averages, *self.averaged_after = past.averages or [0]
        self.notices = list(past.notices)
        self.kept, _ = past.kept
        before = self.rosters[0].first - 1 if self.rosters else 0
        self.publication = Publication(
            self.config,
            past.total_rounds,
            published=past.published,
            planned=past.planned,
            failed=past.failed,
            fastest=max([before, *(member.rounds for member in past.members)]),
        )
        self.publication.complete(self.kept)

    @property
    def roster(self) -> Roster:
        """The newest roster; before the start an empty one."""
        return self.rosters[-1] if self.rosters else Roster(generation=-1, peers=())

    @property
    def published(self) -> int:
        """The last round whose seed is published."""
        return self.publication.published

    @property
    def started(self) -> bool:
        """Whether the run has started: its first roster exists."""
        return bool(self.rosters)

    @property
    def ending(self) -> bool:
        """Whether the seeds of all rounds are published, or some member has finished."""
        over = self.total_rounds and self.published >= self.total_rounds
        return bool(over) or any(m.phase >= Phase.FINISHED for m in self.members.values())

    @property
    def averaging(self) -> bool:
        """Whether some member has begun an average that not all members hold yet."""
        return any(m.averaging[0] > self.averages for m in self.enrolled())

    @property
    def no_snapshots(self) -> str:
        """Why no worker can join late or go on from a checkpoint; "" if one can."""
        return next((m.no_snapshots for m in self.members.values() if m.no_snapshots), "")

    def enrolled(self) -> list[KnownMember]:
        """The members in the newest roster."""
        return [m for m in self.members.values() if m.phase >= Phase.ENROLLED]

    @property
    def all_have_finished(self) -> bool:
        """Whether there are members, and each has finished its rounds and averages."""
        enrolled = self.enrolled()
        return bool(enrolled) and all(m.phase >= Phase.FINISHED for m in enrolled)

    def attached(self) -> list[KnownMember]:
        """The members that wait to be put into a roster."""
        return [m for m in self.members.values() if m.phase is Phase.ATTACHED]

    def tell(
        self, message: Message, members: Iterable[KnownMember] | None = None
    ) -> Iterator[Command]:
        """Send a message to those of `members` (by default: all) that are connected."""
        for member in self.members.values() if members is None else members:
            if member.connected:
                yield Send(member.identity, message)

    def enrol(self, members: Iterable[KnownMember]) -> Iterator[Command]:
        """Begin the next generation with these members."""
        ordered = sorted(members, key=lambda m: m.id)
        roster = Roster(
            generation=self.next_generation,
            peers=tuple(m.peer for m in ordered),
            first=self.published + 1,
        )
        self.next_generation += 1
        self.rosters.append(roster)
        yield Keep(roster)
        for member in ordered:
            if member.phase < Phase.ENROLLED:
                member.phase = Phase.ENROLLED
                yield Keep(member)
        yield from self.tell(self.announcement(roster), ordered)

    def announcement(self, roster: Roster) -> NewRoster:
        """The message that announces a roster."""
        return NewRoster(roster.generation, roster.first, self.averages, roster.rows)

    def drop(self, member: KnownMember, what: str, code: int = 1) -> Iterator[Command]:
        """Drop a member. The others go on; if none is left, the run ends with exit code `code`."""
        del self.members[member.identity]
        first = self.published + 1 if self.started else 0
        departed = Departed(member.id, member.host, what, first, member.pid)
        yield Keep(departed)
        yield Event(f"{member} {what}", What.DROPPED, member.id)
        if not self.started:
            yield self.waiting()
            return
        if member.phase < Phase.ENROLLED:
            return
        self.departed.append(departed)
        left = self.enrolled()
        if not left:
            yield from self.stop(f"{member} {what}; no member is left", code)
            return
        yield from self.enrol(left)
        yield Event(
            f"going on with {len(left)} of {self.config.n} members, from round {first} on in "
            f"generation {self.roster.generation}",
            What.GOES_ON,
        )

    def expel(
        self, member: KnownMember, what: str, answer: Refuse | Dropped | None = None
    ) -> Iterator[Command]:
        """Drop a member that is still connected, and send it `answer`.

        The default answer is Dropped: the member may join again. For the last member it is Stop.
        The run ends if no member is left.
        """
        last = self.started and self.enrolled() == [member]
        end = Stop(f"{member} {what}; no member is left", 1)
        yield Send(member.identity, answer or (end if last else Dropped(f"it {what}")))
        yield from self.drop(member, what)

    def dismiss(self, member: KnownMember, what: str) -> Iterator[Command]:
        """Drop a member that breaks the protocol, and refuse it. `what` says what it did."""
        answer = Refuse(f"{member} {what}; run the same version everywhere")
        yield from self.expel(member, what, answer)

    def turn_away(self, newcomer: KnownMember, reason: str) -> Iterator[Command]:
        """Remove a worker that is in no roster yet, and send it Refuse with this `reason`."""
        del self.members[newcomer.identity]
        yield Keep(Departed(newcomer.id, newcomer.host, reason, 0))
        yield Send(newcomer.identity, Refuse(reason))

    def stop(self, reason: str, code: int) -> Iterator[Command]:
        """End the run: send Stop to all connected members. The coordinator exits with `code`."""
        if self.ended:
            return
        self.ended = True
        yield from self.tell(Stop(reason, code))
        yield EndRun(reason, code)

    def saved(self, member: KnownMember, number: int, error: str) -> Iterator[Command]:
        """Handle Saved: a member holds its checkpoint of round `number` if `error` is empty.

        Otherwise it could not write that checkpoint. Then all members discard theirs of that round.
        They still take the round for one with a checkpoint, since some have done so already.
        """
        if not error and number in self.publication.failed:
            yield from self.tell(Discard(number), [member])
        elif not error and number in self.publication.planned:
            member.saved.add(number)
        elif error and number in set(self.publication.planned) - self.publication.failed:
            self.publication.failed.add(number)
            yield Keep(("failed", sorted(self.publication.failed)))
            kept = self.kept
            last = f"the last good one is of round {kept}" if kept else "there is none"
            text = f"{member} has no checkpoint of round {number}: {error}; {last}"
            yield Event(text, What.NO_CHECKPOINT, member.id)
            yield from self.tell(Discard(number), self.enrolled())

    def complete_checkpoint(self) -> Iterator[Command]:
        """Once all members hold a planned checkpoint, have them delete older checkpoints."""
        planned, failed = self.publication.planned, self.publication.failed
        for number in (n for n in reversed(planned) if n not in failed):
            there = set(roster_at(self.rosters, number).members)
            holders = [member for member in self.enrolled() if member.id in there]
            if holders and all(number in member.saved for member in holders):
                self.kept = number
                self.publication.complete(number)
                yield Keep(("checkpoint", [number, [member.id for member in holders]]))
                yield from self.tell(Kept(number), self.enrolled())
                yield Event(f"all members have a checkpoint of round {number}", What.CHECKPOINT)
                return

    def note(self, member: KnownMember, topic: str, text: str) -> Iterator[Command]:
        """Keep a member's notice for people to read. A repeated notice is kept once."""
        notice = {"member": member.id, "topic": topic, "text": text}
        if notice not in self.notices and len(self.notices) < NOTICES:
            self.notices.append(notice)
            yield Keep(("notices", self.notices))
            yield Event(f"{member}: {text}", What.NOTICE, member.id)

    def settlement(self) -> Settled:
        """The Settled message for the last average that stands."""
        assert self.settled is not None
        return Settled(self.settled.generation, self.averages, self.averaged_after)

    def missed_by(self, member: KnownMember, generations: int, seeds: int) -> Iterator[Command]:
        """Send `member` the rosters, seeds and results that it has not heard of.

        It knows rosters of generations below `generations`, and seeds up to that of round `seeds`.
        """
        its = [roster for roster in self.rosters if member.id in roster.members]
        for roster in its:
            if roster.generation >= generations:
                yield Send(member.identity, self.announcement(roster))
        if its:
            missed = range(max(its[0].first, seeds + 1), self.published + 1)
            for message in self.publication.messages(self.rosters, missed):
                yield Send(member.identity, message)
        if self.settled is not None:
            yield Send(member.identity, self.settlement())
        if self.accuracy:
            yield Send(member.identity, Evaluated(self.accuracy["number"]))
        if self.all_have_finished:
            yield Send(member.identity, Finish())

    def waiting(self) -> Event:
        """An event that says how many members are missing before the start."""
        missing = self.expected - len(self.members)
        return Event(f"waiting for {missing} of {self.expected} members", What.WAITING)
