"""Membership: who is in the run and how far it has come. A pure state machine.

Events and the clock go in, commands come out; no sockets, no files, no printing. `server.py`
carries the commands out. Who is lost after the start is dropped: a new roster, without it, holds
from the first round whose seed is not out yet, so that all change at the same round.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from coordinator.admission import mismatch, objection, unreachable
from coordinator.commands import End, Event, Keep, Record, Rewind, Send, Started
from coordinator.members import Departed, Member, Phase
from coordinator.publication import Publication
from coordinator.resumption import Resumption
from washp2p.control import (
    Accounts,
    Attach,
    Averaged,
    Back,
    Claim,
    Diverged,
    Donor,
    Dropped,
    Evaluated,
    Finish,
    Finished,
    Guest,
    Hello,
    Kept,
    Leave,
    Message,
    Metrics,
    NewRoster,
    Progress,
    Ready,
    Refuse,
    Result,
    Resume,
    Saved,
    Settled,
    Stalled,
    Stop,
    Synced,
    Welcome,
)
from washp2p.endpoints import split_tcp
from washp2p.errors import INTERRUPTED
from washp2p.layout import Layout
from washp2p.patience import Patience
from washp2p.rounds import MemberId, Peer, Roster, roster_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.commands import Command
    from coordinator.members import Past
    from washp2p.config import RunConfig


class Membership:
    """The run's members, from the first hello to the last goodbye."""

    def __init__(
        self, config: RunConfig, *, run: bytes, name: str, version: str, derivation: int
    ) -> None:
        self.config = config
        self.members: dict[bytes, Member] = {}
        self.departed: list[Departed] = []
        self.total_rounds = 0
        self.ended = False
        self.accuracy: dict[str, Any] = {}
        self.rosters: list[Roster] = []
        self.settled: Roster | None = None
        """The roster over which the members were averaged."""
        self._patience = Patience(config.patience)
        self._run = run
        self._name = name
        self._version = version
        self._derivation = derivation
        self._next_id = 0
        self._next_epoch = 0
        self._publication = Publication(config)
        self._kept = 0
        self._resumption: Resumption | None = None
        self._now = self._latest_arrival = 0.0
        self._stalled: defaultdict[MemberId, set[MemberId]] = defaultdict(set)

    def go_on(self, past: Past, now: float) -> Iterator[Command]:
        """Be the coordinator of a run that had one before: wait for its members to come back."""
        self._now = now
        self.members = {member.identity: member for member in past.members}
        self.departed = list(past.departed)
        self.rosters = list(past.rosters)
        self._next_epoch = self.roster.epoch + 1
        self.total_rounds = past.total_rounds
        self.settled, self.accuracy = past.settled, past.accuracy
        self._next_id = past.next_id
        self._kept, _ = past.kept
        self._publication = Publication(
            self.config,
            past.total_rounds,
            published=past.published,
            planned=past.planned,
            fastest=max((member.rounds for member in past.members), default=0),
        )
        if past.published:
            self._publication.begin(now)
        for member in past.members:
            if member.phase < Phase.ACCOUNTED:
                member.away_until = self._now + self._patience.back
        if past.members and all(m.phase is Phase.ACCOUNTED for m in past.members):
            self.ended = True
            yield End("all members finished", 0)
            return
        away = sum(not member.connected for member in past.members)
        yield Event(f"back after round {past.published}'s seed: {away} members are waited for")

    def resume(self, past: Past) -> Iterator[Command]:
        """Be the coordinator of a run whose members are gone: wait for their checkpoints."""
        self.total_rounds = past.total_rounds
        self._next_id = past.next_id
        self._resumption = Resumption(past)
        self._next_epoch = self._resumption.next_epoch
        rounds = " or ".join(map(str, self._resumption.rounds))
        who = ", ".join(map(str, self._resumption.members))
        yield Event(f"waiting for workers with the checkpoints of members {who}, of round {rounds}")

    @property
    def roster(self) -> Roster:
        """The newest; of nobody before the start."""
        return self.rosters[-1] if self.rosters else Roster(epoch=-1, peers=())

    @property
    def published(self) -> int:
        """The last round whose seed is out."""
        return self._publication.published

    @property
    def started(self) -> bool:
        """Whether there has been a roster."""
        return bool(self.rosters)

    def receive(  # noqa: PLR0912 - a case a message
        self, identity: bytes, message: Message, now: float
    ) -> Iterator[Command]:
        """A worker's message. `now` is in seconds, of any steady clock."""
        self._now = now
        if isinstance(message, Hello):
            yield from self._hello(identity, message)
            return
        if isinstance(message, Claim):
            yield from self._claim(identity, message)
            return
        member = self.members.get(identity)
        if member is None:
            if isinstance(message, Back | Progress) and not self.ended:
                yield Send(identity, Dropped("this coordinator does not count it as a member"))
            return
        if self.ended:
            return
        match message:
            case Back(epochs, seeds):
                yield from self._back(member, epochs, seeds)
            case Attach():
                yield from self._attach(member, message)
            case Synced(epoch):
                member.synced = max(member.synced, epoch)
                yield from self._move_on()
            case Ready():
                yield from self._ready(member)
            case Progress(rounds):
                yield from self._progress(member, rounds)
            case Saved(number, error):
                yield from self._saved(member, number, error)
            case Stalled(slow):
                yield from self._report(member, slow)
            case Diverged(sick):
                yield from self._diverged(sick)
            case Metrics(values):
                yield Record(values)
            case Averaged(epoch):
                member.averaged = max(member.averaged, epoch)
                yield from self._move_on()
            case Result(values):
                self.accuracy = values
                yield Keep(("accuracy", values))
                yield from self.tell(Evaluated())
            case Finished(rounds):
                member.finished, member.rounds = message, rounds
                yield from self._advance(member, Phase.FINISHED)
            case Accounts(counts):
                member.counts = counts
                yield from self._advance(member, Phase.ACCOUNTED)
            case Leave(reason, code):
                yield from self._drop(member, f"left: {reason}", code or 1)
            case _:
                what = f"sent an unexpected {type(message).__name__}"
                yield from self._dismiss(member, what)

    def gone(self, identity: bytes, now: float) -> Iterator[Command]:
        """The connection to a worker is closed."""
        self._now = now
        member = self.members.get(identity)
        if member is None or self.ended or not member.connected:
            return
        if [m for m in self._enrolled() if m.connected] == [member]:
            member.away_until = self._now + self._patience.back
            yield Event(f"{member} is not connected, nor is any other: it is waited for")
            return
        if member.phase < Phase.ACCOUNTED:
            yield from self._drop(member, "died: its connection is closed")

    def tick(self, now: float) -> Iterator[Command]:
        """Time has passed. To be called every now and then."""
        self._now = now
        for member in list(self.members.values()):
            if member.away_until is not None and now >= member.away_until and not self.ended:
                what = f"did not come back within {self._patience.back:g} s"
                yield from self._drop(member, what)
        if not self.started and self.config.min_n and not self.ended:
            attached = self._of_phase(Phase.ATTACHED)
            waited = now - self._latest_arrival >= self._patience.seconds
            if waited and len(attached) >= self.config.min_n:
                yield Event(f"going on with {len(attached)} of {self.config.n} members")
                yield from self._start()

    def stop(self, reason: str, code: int) -> Iterator[Command]:
        """End the run for everyone."""
        if self.ended:
            return
        self.ended = True
        yield from self.tell(Stop(reason, code))
        yield End(reason, code)

    # Joining

    def _hello(self, identity: bytes, hello: Hello) -> Iterator[Command]:
        known = self.members.get(identity)
        if known is not None:  # the answer was lost with the connection
            known.away_until = None
            yield Send(identity, self._welcome(known))
            return
        reason = objection(hello, self._version, self._derivation) or self._closed()
        if reason:
            yield Event(f"refused {hello.host}, process {hello.pid}: {reason}")
            yield Send(identity, Refuse(reason))
            return
        if self._resumption is not None:
            yield Send(identity, Resume(self._name, list(self._resumption.rounds)))
            return
        member = Member(id=self._next_id, identity=identity, host=hello.host, pid=hello.pid)
        self._next_id += 1
        yield from self._take_in(member)

    def _claim(self, identity: bytes, claim: Claim) -> Iterator[Command]:
        """A worker says which checkpoints it has; it becomes the first such member that is free."""
        resumption = self._resumption
        if resumption is None:
            yield Send(identity, Dropped("the run went on without it"))
            return
        taken = {member.id for member in self.members.values()}
        its = resumption.place(claim.held, taken)
        if its is None:
            rounds = " or ".join(map(str, resumption.rounds))
            reason = (
                f"no checkpoint of round {rounds} on {claim.host} that is not taken; name its "
                "--run-dir, or come once the run has gone on"
            )
            yield Event(f"refused {claim.host}, process {claim.pid}: {reason}")
            yield Send(identity, Refuse(reason))
            return
        member = Member(id=its, identity=identity, host=claim.host, pid=claim.pid)
        member.saved = resumption.rounds_of(its, claim.held)
        yield from self._take_in(member)

    def _take_in(self, member: Member) -> Iterator[Command]:
        self._latest_arrival = self._now
        self.members[member.identity] = member
        yield Keep(member)
        yield Event(f"{member} joined ({len(self.members)} of {self._expected})")
        yield Send(member.identity, self._welcome(member))

    @property
    def _expected(self) -> int:
        """How many members the run starts with, unless it starts with fewer."""
        if self._resumption is None:
            return self.config.n
        return min(self.config.n, self._resumption.expected)

    def _welcome(self, member: Member) -> Welcome:
        return Welcome(member.id, self._run, self._name, self.config.to_wire())

    def _closed(self) -> str:
        """Why nobody more can join; empty if one can."""
        if self.ended:
            return "the run has ended; start a new coordinator"
        if len(self.members) >= self.config.n:
            return (
                f"the run has its {self.config.n} members; start the coordinator with a larger "
                "--n to have more"
            )
        if self._ending():
            return "the run is ending: its last rounds are on; start a new coordinator"
        return ""

    def _ending(self) -> bool:
        """Whether the seeds of all rounds are out, or members have left them behind."""
        over = self.total_rounds and self.published >= self.total_rounds
        return bool(over) or any(member.averaged >= 0 for member in self.members.values())

    def _attach(self, member: Member, attach: Attach) -> Iterator[Command]:
        if member.phase is not Phase.WELCOMED:
            return  # said again after a lost connection
        try:
            layout = Layout.from_wire(attach.layout)
            split_tcp(attach.endpoint)
        except ValueError as error:
            yield from self._dismiss(member, f"cannot be attached: {error}")
            return
        others = [m for m in self.members.values() if m.layout is not None]
        reason = mismatch(member, layout, attach.rounds, others, self.total_rounds)
        if self._resumption is not None and attach.rounds != self.total_rounds:
            reason = f"{member} comes for {attach.rounds} rounds, the run has {self.total_rounds}"
        if self.started:
            reason = reason or unreachable([*self._enrolled(), member])
            if self._ending():
                reason = reason or f"{member} came too late: the last rounds of the run are on"
        if self.started and member.saved:
            yield from self._expel(member, "came when the run had gone on from its checkpoint")
            return
        if reason:
            yield Event(f"refused: {reason}")
            yield from self._turn_away(member, reason)
            yield self._waiting()
            return
        if not self.started:
            self.total_rounds = attach.rounds
            yield Keep(("total_rounds", attach.rounds))
        member.layout, member.endpoint, member.phase = layout, attach.endpoint, Phase.ATTACHED
        member.versions = attach.versions
        self._latest_arrival = self._now
        yield Keep(member)
        if self.started:
            yield from self._find_donor(member)
        elif len(self._of_phase(Phase.ATTACHED)) == self._expected:
            yield from self._start()

    def _turn_away(self, member: Member, reason: str) -> Iterator[Command]:
        """One that was welcome cannot be a member after all."""
        del self.members[member.identity]
        yield Keep(Departed(member.id, member.host, reason, 0))
        yield Send(member.identity, Refuse(reason))

    def _start(self) -> Iterator[Command]:
        present = sorted(self._of_phase(Phase.ATTACHED), key=lambda m: m.id)
        if reason := unreachable(present):
            yield from self.stop(reason, 2)
            return
        if self._resumption is not None:
            yield from self._rewind(self._resumption, present)
            return
        self._publication = Publication(self.config, self.total_rounds)
        yield from self._enrol(present)
        yield Started(tuple(present))
        yield Event(f"{len(present)} members are here and fetch member {present[0].id}'s state")
        yield from self._move_on()

    def _rewind(self, resumption: Resumption, present: list[Member]) -> Iterator[Command]:
        """All that come are here: go on from the newest checkpoint that all of them hold."""
        number = resumption.newest_of(present)
        if number is None:
            yield from self.stop("the members hold no checkpoint of one and the same round", 2)
            return
        self._resumption = None
        self._kept = number
        yield Rewind(number)
        yield Keep(("checkpoint", [number, [member.id for member in present]]))
        self.rosters = resumption.rosters_until(number)
        self.departed = resumption.departed_at(number, present)
        for gone in self.departed:
            yield Keep(gone)
        self._publication = Publication(
            self.config, self.total_rounds, published=number, fastest=number
        )
        yield from self._enrol(present)
        yield Started(tuple(present))
        yield Event(f"{len(present)} members go on from their checkpoints of round {number}")
        yield from self._move_on()

    def _find_donors(self, lost: MemberId | None = None) -> Iterator[Command]:
        """Find one for each newcomer that has none, or has the one `lost`."""
        for newcomer in self._of_phase(Phase.ATTACHED) if self.started else ():
            if newcomer.donor in {None, lost}:
                yield from self._find_donor(newcomer)

    def _find_donor(self, newcomer: Member, without: MemberId | None = None) -> Iterator[Command]:
        """Have a newcomer fetch a snapshot from the member that has come furthest."""
        able = [m for m in self._enrolled() if m.connected and m.id != without]
        newcomer.donor = None
        if not able:
            return
        donor = max(able, key=lambda m: (m.rounds, -m.id))
        newcomer.donor = donor.id
        yield Send(donor.identity, Guest(newcomer.id, newcomer.endpoint))
        yield Send(newcomer.identity, Donor(donor.id, donor.endpoint))
        yield Event(f"{newcomer} fetches a snapshot from member {donor.id}")

    def _ready(self, member: Member) -> Iterator[Command]:
        if member.phase is not Phase.ATTACHED:
            return
        if self._ending():
            yield from self._turn_away(member, "the run is ending: its last rounds are on")
            return
        member.donor = None
        yield from self._enrol([*self._enrolled(), member])
        yield Event(f"{member} takes part from round {self.roster.first} on")

    # The roster, and what follows from it

    def _enrol(self, members: Iterable[Member]) -> Iterator[Command]:
        """The next epoch has these members."""
        ordered = sorted(members, key=lambda m: m.id)
        roster = Roster(
            epoch=self._next_epoch,
            peers=tuple(Peer(member=m.id, endpoint=m.endpoint, host=m.host) for m in ordered),
            first=self.published + 1,
        )
        self._next_epoch += 1
        self.rosters.append(roster)
        self._stalled.clear()
        yield Keep(roster)
        for member in ordered:
            if member.phase < Phase.ENROLLED:
                member.phase = Phase.ENROLLED
                yield Keep(member)
        yield from self.tell(_message(roster), ordered)

    def _drop(self, member: Member, what: str, code: int = 1) -> Iterator[Command]:
        del self.members[member.identity]
        first = self.published + 1 if self.started else 0
        departed = Departed(member.id, member.host, what, first)
        yield Keep(departed)
        yield Event(f"{member} {what}")
        if not self.started:
            if code == INTERRUPTED:
                yield from self.stop(f"{member} {what}", code)
            else:
                yield self._waiting()
            return
        if member.phase < Phase.ENROLLED:
            return
        self.departed.append(departed)
        left = self._enrolled()
        if not left:
            yield from self.stop(f"{member} {what}; no member is left", code)
            return
        yield from self._enrol(left)
        yield from self._find_donors(member.id)
        yield Event(
            f"going on with {len(left)} of {self.config.n} members, from round {first} on in "
            f"epoch {self.roster.epoch}"
        )
        yield from self._move_on()

    def _dismiss(self, member: Member, what: str) -> Iterator[Command]:
        """A member that does not keep to the protocol is told so, and lost."""
        answer = Refuse(f"{member} {what}; run the same version everywhere")
        yield from self._expel(member, what, answer)

    def _expel(
        self, member: Member, what: str, answer: Refuse | Dropped | None = None
    ) -> Iterator[Command]:
        """Drop a member that is still there, and tell it so: by default, that it may come again."""
        yield Send(member.identity, answer or Dropped(f"it {what}"))
        yield from self._drop(member, what)

    def _report(self, member: Member, slow: MemberId) -> Iterator[Command]:
        """Drop whom most of the others have waited for too long; of two, each other: the later."""
        enrolled = {m.id: m for m in self._enrolled()}
        if member.phase is Phase.ATTACHED and member.donor == slow:
            yield from self._find_donor(member, without=slow)
        if slow not in enrolled or member.id not in enrolled:
            return
        self._stalled[slow].add(member.id)
        if 2 * len(self._stalled[slow]) > len(enrolled) - 1:
            offender, reason = enrolled[slow], "kept most others waiting too long"
        elif slow in self._stalled[member.id]:
            offender = enrolled[max(slow, member.id)]
            reason = f"and member {min(slow, member.id)} kept each other waiting too long"
        else:
            return
        yield from self._expel(offender, reason)

    def _diverged(self, sick: MemberId) -> Iterator[Command]:
        """Somebody has been sent values that are not finite: `--on-divergence` says what to do."""
        member = next((m for m in self._enrolled() if m.id == sick), None)
        if member is None:
            return
        what = "sent values that are not finite"
        match self.config.on_divergence:
            case "stop":
                yield from self.stop(f"{member} {what}; lower --lr, or see --on-divergence", 1)
            case "drop":
                reason = f"{member} {what}, and was dropped by --on-divergence=drop"
                yield from self._expel(member, what, Refuse(reason))
            case _:
                yield from self._expel(member, what)

    def _back(self, member: Member, epochs: int, seeds: int) -> Iterator[Command]:
        """A member is connected again: it gets what it missed."""
        member.away_until = None
        yield Event(f"{member} is back")
        its = [roster for roster in self.rosters if member.id in roster.members]
        for roster in its:
            if roster.epoch >= epochs:
                yield Send(member.identity, _message(roster))
        if its:
            first = max(its[0].first, seeds + 1)
            missed = range(first, self.published + 1)
            for message in self._publication.messages(self.rosters, missed):
                yield Send(member.identity, message)
        if self.settled is not None:
            yield Send(member.identity, Settled(self.settled.epoch))
        if self.accuracy:
            yield Send(member.identity, Evaluated())
        if self._finishing():
            yield Send(member.identity, Finish())
        if self.started and member.phase is Phase.ATTACHED:
            yield from self._find_donor(member)
        else:
            yield from self._find_donors(member.id)

    def _advance(self, member: Member, phase: Phase) -> Iterator[Command]:
        if member.phase >= Phase.ENROLLED:
            member.phase = max(member.phase, phase)
            yield Keep(member)
            yield from self._move_on()

    def _move_on(self) -> Iterator[Command]:
        """Do what all members together have come far enough for."""
        enrolled = self._enrolled()
        epoch = self.roster.epoch
        if not self._publication.begun and all(m.synced == epoch for m in enrolled):
            self._publication.begin(self._now)
            yield Event("training begins")
            yield from self._publish()
        yield from self._complete_checkpoint()
        if self.settled is None and all(m.averaged == epoch for m in enrolled):
            self.settled = self.roster
            yield Keep(("settled", epoch))
            yield from self.tell(Settled(epoch), enrolled)
        if self._finishing() and not self.ended:
            if all(m.phase is Phase.FINISHED for m in enrolled):
                yield from self.tell(Finish(), enrolled)
            if all(m.phase is Phase.ACCOUNTED for m in enrolled):
                self.ended = True
                yield End("all members finished", 0)

    def _finishing(self) -> bool:
        """Whether all members have all they need."""
        enrolled = self._enrolled()
        return bool(enrolled) and all(m.phase >= Phase.FINISHED for m in enrolled)

    # Seeds and checkpoints

    def _progress(self, member: Member, rounds: int) -> Iterator[Command]:
        member.rounds = max(member.rounds, rounds)
        if self._publication.reach(rounds, self._now):
            yield from self._publish()

    def _publish(self) -> Iterator[Command]:
        enrolled = self._enrolled()
        while window := self._publication.due(self._now):
            yield Keep(("published", window.stop - 1))
            yield Keep(("planned", list(self._publication.planned)))
            for message in self._publication.messages(self.rosters, window):
                yield from self.tell(message, enrolled)

    def _saved(self, member: Member, number: int, error: str) -> Iterator[Command]:
        """A member holds a checkpoint, or could not keep it: then nobody need."""
        if not error:
            member.saved.add(number)
            yield from self._move_on()
        elif number in self._publication.planned:
            self._publication.planned.remove(number)
            last = f"the last good one is of round {self._kept}" if self._kept else "there is none"
            yield Event(f"{member} has no checkpoint of round {number}: {error}; {last}")

    def _complete_checkpoint(self) -> Iterator[Command]:
        """Let older checkpoints go once all have a newer one."""
        planned = self._publication.planned
        for number in reversed(planned):
            there = set(roster_at(self.rosters, number).members)
            holders = [member for member in self._enrolled() if member.id in there]
            if holders and all(number in member.saved for member in holders):
                self._kept = number
                planned[:] = [later for later in planned if later > number]
                yield Keep(("checkpoint", [number, [member.id for member in holders]]))
                yield from self.tell(Kept(number))
                yield Event(f"all members have a checkpoint of round {number}")
                return

    # Small things

    def tell(self, message: Message, members: Iterable[Member] | None = None) -> Iterator[Command]:
        """Send a message to `members`, or to all that are connected."""
        for member in self.members.values() if members is None else members:
            if member.connected:
                yield Send(member.identity, message)

    def _enrolled(self) -> list[Member]:
        return [m for m in self.members.values() if m.phase >= Phase.ENROLLED]

    def _of_phase(self, phase: Phase) -> list[Member]:
        return [m for m in self.members.values() if m.phase is phase]

    def _waiting(self) -> Event:
        return Event(
            f"waiting for {self._expected - len(self.members)} of {self._expected} members"
        )


def _message(roster: Roster) -> NewRoster:
    return NewRoster(roster.epoch, roster.first, roster.rows)
