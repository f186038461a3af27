"""Membership: who is in the run and how far it has come. A pure state machine.

Events and the clock go in, commands come out; no sockets, no files, no printing. `server.py`
carries the commands out. In this lockstep mode a member lost after the start ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from coordinator.commands import End, Event, Record, Send, Started
from coordinator.seeds import SeedWindows
from washp2p.control import (
    PROTOCOL,
    Accounts,
    Attach,
    Finish,
    Finished,
    Hello,
    Leave,
    Message,
    Metrics,
    NewRoster,
    Progress,
    Refuse,
    Result,
    Seeds,
    Stop,
    Synced,
    Welcome,
)
from washp2p.endpoints import is_loopback, split_tcp
from washp2p.errors import INTERRUPTED
from washp2p.layout import Layout
from washp2p.rounds import MemberId, Peer, Roster, pack_seeds, round_seed, run_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.commands import Command
    from washp2p.config import RunConfig


class Phase(IntEnum):
    """How far a member has come; each phase includes those before it."""

    WELCOMED = 0
    ATTACHED = 1
    SYNCED = 2
    FINISHED = 3
    ACCOUNTED = 4


@dataclass
class Member:
    """What is known of one worker."""

    id: MemberId
    identity: bytes
    host: str
    pid: int
    phase: Phase = Phase.WELCOMED
    layout: Layout | None = None
    endpoint: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    finished: Finished | None = None
    counts: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        """How messages to people name it."""
        return f"member {self.id} ({self.host}, process {self.pid})"


class Membership:
    """The run's members, from the first hello to the last goodbye."""

    def __init__(
        self, config: RunConfig, *, run: bytes, name: str, version: str, derivation: int
    ) -> None:
        self.config = config
        self.members: dict[bytes, Member] = {}
        self.total_rounds = 0
        self.started = False
        self.ended = False
        self.accuracy: dict[str, Any] = {}
        self.roster = Roster(epoch=0, peers=())
        self._run = run
        self._name = name
        self._version = version
        self._derivation = derivation
        self._key = run_key(config.seed)
        self._next_id = 0
        self._windows = SeedWindows(0)
        self._training = False
        self._started_at = 0.0
        self._fastest = 0

    def receive(self, identity: bytes, message: Message, now: float) -> Iterator[Command]:
        """A worker's message. `now` is in seconds, of any steady clock."""
        if isinstance(message, Hello):
            yield from self._hello(identity, message)
            return
        member = self.members.get(identity)
        if member is None or self.ended:
            return
        match message:
            case Attach():
                yield from self._attach(member, message)
            case Synced():
                yield from self._synced(member, now)
            case Progress(rounds):
                member.rounds = max(member.rounds, rounds)
                if self._training and rounds > self._fastest:
                    self._fastest = rounds
                    yield from self._seeds(now)
            case Metrics(values):
                yield Record(values)
            case Result(values):
                self.accuracy = values
            case Finished():
                yield from self._finished(member, message)
            case Accounts(counts):
                yield from self._accounted(member, counts)
            case Leave(reason, code):
                yield from self._lost(member, f"left: {reason}", code or 1)
            case _:
                yield from self._dismiss(member, f"sent an unexpected {type(message).__name__}")

    def gone(self, identity: bytes) -> Iterator[Command]:
        """The connection to a worker is closed."""
        member = self.members.get(identity)
        if member is not None and member.phase < Phase.ACCOUNTED and not self.ended:
            yield from self._lost(member, "died: its connection is closed", 1)

    def stop(self, reason: str, code: int) -> Iterator[Command]:
        """End the run for everyone."""
        if self.ended:
            return
        self.ended = True
        for identity in self.members:
            yield Send(identity, Stop(reason, code))
        yield End(reason, code)

    def _hello(self, identity: bytes, hello: Hello) -> Iterator[Command]:
        reason = self._objection(hello)
        if reason:
            yield Event(f"refused {hello.host}, process {hello.pid}: {reason}")
            yield Send(identity, Refuse(reason))
            return
        member = Member(id=self._next_id, identity=identity, host=hello.host, pid=hello.pid)
        self._next_id += 1
        self.members[identity] = member
        yield Event(f"{member} joined ({len(self.members)} of {self.config.n})")
        yield Send(identity, Welcome(member.id, self._run, self._name, self.config.to_wire()))

    def _objection(self, hello: Hello) -> str:
        for what, theirs, ours in (
            ("protocol version", hello.protocol, PROTOCOL),
            ("version of washp2p", hello.version, self._version),
            ("plan derivation", hello.derivation, self._derivation),
        ):
            if theirs != ours:
                return (
                    f"{what} {theirs} on {hello.host}, {ours} at the coordinator; "
                    "install the same version of washp2p on both"
                )
        if self.ended:
            return "the run has ended; start a new coordinator"
        if self.started or len(self.members) >= self.config.n:
            return (
                f"the run has its {self.config.n} members; start the coordinator with a larger "
                "--n to have more"
            )
        return ""

    def _attach(self, member: Member, attach: Attach) -> Iterator[Command]:
        if member.phase is not Phase.WELCOMED:
            yield from self._dismiss(member, "attached twice")
            return
        try:
            layout = Layout.from_wire(attach.layout)
            split_tcp(attach.endpoint)
        except ValueError as error:
            yield from self._dismiss(member, f"cannot be attached: {error}")
            return
        reference = next((m for m in self.members.values() if m.layout is not None), None)
        if reference is not None and reference.layout is not None:
            reason = self._mismatch(member, layout, attach.rounds, reference, reference.layout)
            if reason:
                del self.members[member.identity]
                yield Event(f"refused: {reason}")
                yield Send(member.identity, Refuse(reason))
                yield self._waiting()
                return
        self.total_rounds = attach.rounds
        member.layout, member.endpoint, member.phase = layout, attach.endpoint, Phase.ATTACHED
        member.versions = attach.versions
        if self._all(Phase.ATTACHED):
            yield from self._start()

    def _mismatch(
        self, member: Member, layout: Layout, rounds: int, reference: Member, expected: Layout
    ) -> str:
        difference = layout.difference(expected)
        if difference:
            return (
                f"the model of {member} does not fit that of {reference}: {difference}; "
                "build the same model, on the same kind of device, with the same optimizer"
            )
        if rounds != self.total_rounds:
            return (
                f"{member} will take part in {rounds} rounds, {reference} in "
                f"{self.total_rounds}; give both the same data and the same number of steps"
            )
        return ""

    def _unreachable(self) -> str:
        """Why some member's data plane cannot be reached by the others; empty if all can."""
        hosts = sorted({member.host for member in self.members.values()})
        for member in self.members.values():
            if len(hosts) > 1 and is_loopback(member.endpoint):
                return (
                    f"{member} listens at {member.endpoint}, which other hosts "
                    f"({', '.join(hosts)}) cannot reach; start it with --bind or --advertise and "
                    "an address of its host"
                )
        return ""

    def _start(self) -> Iterator[Command]:
        if reason := self._unreachable():
            yield from self.stop(reason, 2)
            return
        self.started = True
        self._windows = SeedWindows(self.total_rounds)
        ordered = sorted(self.members.values(), key=lambda m: m.id)
        self.roster = Roster(
            epoch=0,
            peers=tuple(Peer(member=m.id, endpoint=m.endpoint, host=m.host) for m in ordered),
        )
        roster = NewRoster(
            self.roster.epoch,
            [[peer.member, peer.endpoint, peer.host] for peer in self.roster.peers],
        )
        for member in ordered:
            yield Send(member.identity, roster)
        yield Started(tuple(ordered))
        yield Event(
            f"all {self.config.n} members are here and fetch member {ordered[0].id}'s state"
        )

    def _synced(self, member: Member, now: float) -> Iterator[Command]:
        member.phase = max(member.phase, Phase.SYNCED)
        if not self._training and self._all(Phase.SYNCED):
            self._training = True
            self._started_at = now
            yield Event("training begins")
            yield from self._seeds(now)

    def _seeds(self, now: float) -> Iterator[Command]:
        elapsed = now - self._started_at
        rate = self._fastest / elapsed if elapsed > 0 else 0.0
        while window := self._windows.due(self._fastest, rate):
            seeds = pack_seeds([round_seed(self._key, number) for number in window])
            message = Seeds(self.roster.epoch, self.roster.digest(), window.start, seeds)
            for identity in self.members:
                yield Send(identity, message)

    def _finished(self, member: Member, finished: Finished) -> Iterator[Command]:
        member.finished = finished
        member.phase = Phase.FINISHED
        member.rounds = finished.rounds
        if self._all(Phase.FINISHED):
            for identity in self.members:
                yield Send(identity, Finish())

    def _accounted(self, member: Member, counts: list[Any]) -> Iterator[Command]:
        member.counts = counts
        member.phase = Phase.ACCOUNTED
        if self._all(Phase.ACCOUNTED):
            self.ended = True
            yield End("all members finished", 0)

    def _dismiss(self, member: Member, what: str) -> Iterator[Command]:
        """A member that does not keep to the protocol is told so, and lost."""
        yield Send(member.identity, Refuse(f"{member} {what}; run the same version everywhere"))
        yield from self._lost(member, what, 1)

    def _lost(self, member: Member, what: str, code: int) -> Iterator[Command]:
        del self.members[member.identity]
        yield Event(f"{member} {what}")
        if self.started or code == INTERRUPTED:
            yield from self.stop(f"{member} {what}", code)
        else:
            yield self._waiting()

    def _waiting(self) -> Event:
        return Event(f"waiting for {self.config.n - len(self.members)} of {self.config.n} members")

    def _all(self, phase: Phase) -> bool:
        return len(self.members) == self.config.n and all(
            member.phase >= phase for member in self.members.values()
        )
