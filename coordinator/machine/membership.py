"""The state machine of a run: who its members are, and how far it has come. No I/O.

It takes events and the time, and yields commands. `service/server.py` carries out the commands.
`admission.py` says how workers become members, `population.py` how members are dropped. Membership
handles the course of the run.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from coordinator.machine.admission import Admission
from coordinator.machine.averages import begin_average, settle
from coordinator.machine.commands import (
    AppendConsensus,
    AppendMetrics,
    EndRun,
    Event,
    Keep,
    Reject,
    Reserve,
    Send,
    What,
)
from coordinator.machine.complaints import Complaints
from coordinator.machine.donors import Donors
from coordinator.machine.members import Phase
from coordinator.machine.observation import Observation, Surveys
from coordinator.machine.plausibility import implausible
from coordinator.machine.population import Population
from washp2p.errors import EXIT_CODES
from washp2p.protocol.messages.from_coordinator import Dropped, Evaluated, Finish, Refuse
from washp2p.protocol.messages.from_worker import (
    MILESTONES,
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Back,
    Busy,
    Claim,
    CutOff,
    Diverged,
    Finished,
    Hello,
    Leave,
    Metrics,
    NoSnapshots,
    Notice,
    Progress,
    Rank,
    Ready,
    Result,
    Saved,
    Stalled,
    Surveyed,
    Synced,
    Unusable,
    Vitals,
)
from washp2p.protocol.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember, Past
    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message


class Membership:
    """A run, from the first Hello to the last Accounts."""

    def __init__(
        self,
        config: RunConfig,
        *,
        run: bytes,
        origin: bytes = b"",
        name: str,
        version: str,
        derivation: int,
        encrypted: bool = False,
    ) -> None:
        self.population = Population(config)
        self.observation = Observation()
        """What all displays show."""
        self._admission = Admission(
            self.population,
            run=run,
            origin=origin or run,
            name=name,
            version=version,
            derivation=derivation,
            encrypted=encrypted,
        )
        self._surveys = Surveys()
        self._patience = Patience(config.operation.patience)
        self._now = 0.0
        self._donors = Donors(self.population)
        self._complaints = Complaints(self.population, self._donors)
        self._farewell = False
        self.has_room = True
        """Whether the summary can be written."""

    def go_on(self, past: Past, now: float) -> Iterator[Command]:
        """Take over a run from another coordinator, and wait for its members to come back."""
        self._now = now
        self.population.recall(past)
        rosters = self.population.rosters
        if rosters and past.published >= rosters[0].first:  # else all say Synced again
            self.population.publication.begin(now)
        for member in past.members:
            if member.phase < Phase.ACCOUNTED:
                member.away_until = now + self._patience.back
        away = sum(not member.connected for member in past.members)
        text = f"back after round {past.published}'s seed: {away} members are waited for"
        yield Event(text, What.GOES_ON)
        yield from self._end_if_all_have()

    def resume(self, past: Past) -> Iterator[Command]:
        """Take over a run whose members are gone: expect workers that hold its checkpoints."""
        yield from self._admission.resume(past)

    def receive(self, identity: bytes, message: Message, now: float) -> Iterator[Command]:
        """Handle a message of the worker `identity`. `now` is in seconds, of any steady clock."""
        self._now = now
        population = self.population
        if isinstance(message, Hello | Claim):
            yield from self._admission.knock(identity, message, now)
            return
        if isinstance(message, Rank):
            self._admission.wish(identity, message.rank)
            return
        member = population.members.get(identity)
        if population.ended:
            return
        if member is None:
            if isinstance(message, Back | Progress):
                yield Send(identity, Dropped("this coordinator does not count it as a member"))
            elif not isinstance(message, Leave):  # which one that was refused may say, too
                yield Reject(identity, f"a {type(message).__name__} of no member")
            return
        if not member.connected and isinstance(message, MILESTONES):
            return  # it comes again after Back, with what it follows from
        if what := implausible(population, member, message):
            yield Reject(identity, f"{member} {what}")
            return
        if isinstance(message, Progress | Metrics | Vitals | Busy):
            self._complaints.heard(member, now)
        match message:
            case Progress(rounds):
                yield from self._progress(member, rounds)
            case Metrics() | Vitals() | Surveyed():
                yield from self._observe(member, message)
            case _:
                yield from self._hear(member, message)
                yield from self._move_on()

    def _observe(
        self, member: KnownMember, message: Metrics | Vitals | Surveyed
    ) -> Iterator[Command]:
        """Handle a progress report. It is shown, and changes nothing else."""
        match message:
            case Metrics(values):
                self.observation.metrics(member.id, values)
                yield AppendMetrics(values | {"member": member.id})
            case Vitals():
                self.observation.vitals(member, message, self._now)
            case Surveyed():
                found = self._surveys.add(member.id, message)
                if found is not None:
                    self.observation.measured(found)
                    yield AppendConsensus(found)

    def gone(self, identity: bytes, now: float) -> Iterator[Command]:
        """Handle a closed connection to a worker."""
        self._now = now
        population = self.population
        member = population.members.get(identity)
        if member is None or population.ended or not member.connected:
            return
        if member.phase is Phase.ACCOUNTED:  # it has said its last word
            return
        live = [m for m in population.enrolled() if m.connected and m.phase < Phase.ACCOUNTED]
        if live == [member] or (self._farewell and member.phase is Phase.FINISHED):
            member.away_until = now + self._patience.back
            also = "" if live != [member] else ", nor is any other"
            yield Event(f"{member} is not connected{also}: it is waited for", What.AWAY, member.id)
        else:
            yield from population.drop(member, "died: its connection is closed")
            yield from self._move_on()

    def _lose(self, member: KnownMember, what: str) -> Iterator[Command]:
        """Drop a member that is not back, unless it may have left because all have finished."""
        if self._farewell and member.phase is Phase.FINISHED:
            text = "left before its byte counts had come: the summary has none of it"
            yield from self.population.note(member, "no counts", text)
            yield from self._advance(member, Phase.ACCOUNTED)
        else:
            yield from self.population.drop(member, what)

    def cut_off(self, identity: bytes, what: str) -> Iterator[Command]:
        """Drop a worker that exceeded its allowance of messages. `what` says how it did so."""
        member = self.population.members.get(identity)
        if member is not None and not self.population.ended:
            answer = Refuse(f"{member} was cut off: {what}")
            yield from self.population.expel(member, f"was cut off: {what}", answer)
            yield from self._move_on()

    def tick(self, now: float) -> Iterator[Command]:
        """Handle the passing of time. Call it regularly."""
        self._now = now
        population = self.population
        for member in list(population.members.values()):
            if member.away_until is not None and now >= member.away_until and not population.ended:
                member.away_until = None
                yield from self._lose(member, f"did not come back within {self._patience.back:g} s")
        yield from self._admission.tick(now, self._patience.seconds)
        yield from self._complaints.tick(now)
        yield from self._move_on()

    def _hear(  # noqa: PLR0912 - a case a message
        self, member: KnownMember, message: Message
    ) -> Iterator[Command]:
        """Handle a member's message of any kind other than the regular reports."""
        population = self.population
        match message:
            case Back(generations, seeds):
                yield from self._back(member, generations, seeds)
            case Attach():
                yield from self._admission.attach(member, message, self._now)
            case Synced(generation):
                member.synced = max(member.synced, generation)
            case Ready():
                self._admission.ready(member)
            case Saved(number, error):
                yield from population.saved(member, number, error)
            case Stalled(slow, broken):
                yield from self._complaints.stalled(member, slow, broken=broken, now=self._now)
            case Busy(seconds):
                member.busy_until = self._now + seconds
            case Unusable(donor, what):
                self._donors.change(member, donor, what)
            case NoSnapshots(reason):
                member.no_snapshots = reason
                yield Keep(member)
                yield from self._admission.turn_newcomers_away()
            case Notice(topic, text):
                yield from population.note(member, topic, text)
            case Diverged(sick):
                yield from self._complaints.diverged(member, sick)
            case CutOff(offender, what):
                reason = f"was cut off by most others: {what}"
                yield from self._complaints.report(member, offender, reason, for_good=True)
            case Averaging(number, after):
                yield from begin_average(population, member, number, after)
            case Averaged(generation, number):
                member.averaged = max(member.averaged, (generation, number))
            case Result():
                population.accuracy = asdict(message)
                yield Keep(("accuracy", population.accuracy))
                yield from population.tell(Evaluated(message.number))
            case Finished(rounds):
                member.finished, member.rounds = message, rounds
                yield from self._advance(member, Phase.FINISHED)
            case Accounts(counts):
                member.counts = counts
                yield from self._advance(member, Phase.ACCOUNTED)
            case Leave(reason, code):
                code = code if code in EXIT_CODES else 1
                yield from population.drop(member, f"left: {reason}", code)
            case _:
                what = f"sent an unexpected {type(message).__name__}"
                yield from population.dismiss(member, what)

    def _move_on(self) -> Iterator[Command]:
        """Take all steps of the run that the state of its members now allows."""
        population = self.population
        yield from self._donors.find_all()
        if not (enrolled := population.enrolled()) and population.started:
            yield from population.stop("no member is left", 1)  # a coordinator died as it said so
        if not enrolled or population.ended:
            return
        generation = population.roster.generation
        if not population.publication.begun and all(m.synced == generation for m in enrolled):
            population.publication.begin(self._now)
            yield Event("training begins", What.BEGUN)
            yield from self._publish()
        yield from population.complete_checkpoint()
        number = population.averages + 1
        if all(m.averaged == (generation, number) for m in enrolled):
            yield from settle(population, number, enrolled)
        if not population.averaging:
            for newcomer in [m for m in population.attached() if m.ready]:
                yield from self._admission.enter(newcomer)
        if not self._farewell and population.all_have_finished:
            self.has_room = True
            yield Reserve()
            if self.has_room:  # else workers keep what they hold, and it is tried again
                self._farewell = True
                yield from population.tell(Finish(), enrolled)
        yield from self._end_if_all_have()

    def _end_if_all_have(self) -> Iterator[Command]:
        population = self.population
        enrolled = population.enrolled()
        if enrolled and all(m.phase is Phase.ACCOUNTED for m in enrolled):
            population.ended = True
            newcomers = [m for m in population.members.values() if m.phase < Phase.ENROLLED]
            yield from population.tell(Refuse("the run has ended"), newcomers)
            yield EndRun("all members finished", 0)

    @staticmethod
    def _advance(member: KnownMember, phase: Phase) -> Iterator[Command]:
        if member.phase >= Phase.ENROLLED:
            member.phase = max(member.phase, phase)
            yield Keep(member)

    def _back(self, member: KnownMember, generations: int, seeds: int) -> Iterator[Command]:
        """Handle Back: a member is connected again. Send it all that it missed."""
        member.away_until = None
        yield Event(f"{member} is back", What.BACK, member.id)
        yield from self.population.missed_by(member, generations, seeds)
        for newcomer in self.population.attached():  # neither may have heard of the other
            if member is newcomer or member.id == newcomer.donor:
                newcomer.donor = None

    # Seeds and checkpoints

    def _progress(self, member: KnownMember, rounds: int) -> Iterator[Command]:
        member.rounds = max(member.rounds, rounds)
        if self.population.publication.reach(rounds, self._now):
            yield from self._publish()

    def _publish(self) -> Iterator[Command]:
        population = self.population
        publication = population.publication
        enrolled = population.enrolled()
        while window := publication.due(self._now):
            yield Keep(("published", window.stop - 1))
            yield Keep(("planned", list(publication.planned)))
            for message in publication.messages(population.rosters, window):
                yield from population.tell(message, enrolled)
