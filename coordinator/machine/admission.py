"""How workers become members: at the start, in mid-run, or from a checkpoint. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.commands import Event, Keep, Rewind, Send, Started, What
from coordinator.machine.compatibility import (
    buffers_in_words,
    check_key,
    closed,
    layers_in_words,
    misfit,
    objection,
    too_late,
    unreachable,
)
from coordinator.machine.members import KnownMember, Phase
from coordinator.machine.publication import Publication
from coordinator.machine.resumption import Resumption
from washp2p.protocol.endpoints import check_near, check_reachable
from washp2p.protocol.layout import Layout
from washp2p.protocol.messages.from_coordinator import Dropped, Refuse, Resume, Welcome
from washp2p.protocol.messages.from_worker import Hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.machine.commands import Command
    from coordinator.machine.members import Past
    from coordinator.machine.population import Population
    from washp2p.protocol.messages.from_worker import Attach, Claim
    from washp2p.protocol.roster import MemberId


WISHES = 1000
"""At most this many requested ids (Rank) are remembered until the worker's Hello comes."""


class Admission:
    """Takes workers into a population. Every `now` is in seconds, of any steady clock.

    `run` identifies this life of the run, `origin` its first life. `encrypted` says whether links
    are encrypted.
    """

    def __init__(
        self,
        population: Population,
        *,
        run: bytes,
        origin: bytes,
        name: str,
        version: str,
        derivation: int,
        encrypted: bool,
    ) -> None:
        self._encrypted = encrypted
        self._population = population
        self._run = run
        self._origin = origin
        self._name = name
        self._version = version
        self._derivation = derivation
        self._wishes: dict[bytes, MemberId] = {}
        self._resumption: Resumption | None = None
        self._latest_arrival = 0.0
        self._said_missing: set[MemberId] = set()

    def resume(self, past: Past) -> Iterator[Command]:
        """Prepare to resume the run in `past`: expect the workers that hold its checkpoints."""
        self._resumption = resumption = Resumption(past)
        population = self._population
        population.given = set(past.given)
        population.total_rounds = past.total_rounds
        population.next_generation = resumption.next_generation
        newest, *complete = resumption.rounds
        which = f"{complete[0]}, or {newest} if they kept that" if complete else f"{newest}"
        who = ", ".join(map(str, resumption.members))
        text = f"waiting for workers with the checkpoints of members {who}, of round {which}"
        yield Event(text, What.WAITING)

    def knock(self, identity: bytes, message: Hello | Claim, now: float) -> Iterator[Command]:
        """Handle Hello or Claim: a worker asks to join, or says which checkpoints it holds."""
        known = self._population.members.get(identity)
        if known is not None:  # the answer was lost with the connection
            known.away_until = None
            yield Send(identity, self._welcome(known))
        elif isinstance(message, Hello):
            yield from self._hello(identity, message, now)
        else:
            yield from self._claim(identity, message, now)

    def _hello(self, identity: bytes, hello: Hello, now: float) -> Iterator[Command]:
        reason = objection(hello, self._version, self._derivation) or closed(self._population)
        if reason:
            yield from _refuse(identity, hello, reason)
        elif self._resumption is not None:
            yield Send(identity, Resume(self._name, list(self._resumption.rounds)))
        else:
            member = KnownMember(self._number(identity), identity, hello.host, hello.pid)
            yield from self._take_in(member, now)

    def wish(self, identity: bytes, rank: MemberId) -> None:
        """Remember that a worker asks for the id `rank`; its Hello comes next."""
        self._wishes[identity] = rank
        if len(self._wishes) > WISHES:
            self._wishes.pop(next(iter(self._wishes)))

    def _number(self, identity: bytes) -> MemberId:
        """The id that a worker asked for, if it is below N and free; otherwise a new id.

        Once the run has started, the ids of former members are not free.
        """
        population = self._population
        taken = {member.id for member in population.members.values()}
        taken |= population.given if population.started else set()
        wished = self._wishes.pop(identity, population.config.n)
        if wished < population.config.n and wished not in taken:
            return wished
        return max(population.given, default=-1) + 1

    def _claim(self, identity: bytes, claim: Claim, now: float) -> Iterator[Command]:
        """Handle Claim: give the worker the id of a member whose checkpoint it holds.

        Refuse the worker if no such id is free.
        """
        resumption = self._resumption
        if resumption is None:
            yield Send(identity, Dropped("the run went on without it"))
            return
        taken = {member.id for member in self._population.members.values()}
        its = resumption.place(claim.held, taken)
        if its is None:
            rounds = " or ".join(map(str, resumption.rounds))
            reason = (
                f"no checkpoint of round {rounds} on {claim.host} that is not taken; name its "
                "--run-dir, or come once the run has gone on"
            )
            yield from _refuse(identity, claim, reason)
            return
        member = KnownMember(id=its, identity=identity, host=claim.host, pid=claim.pid)
        member.saved = resumption.rounds_of(its, claim.held)
        yield from self._take_in(member, now)

    def attach(self, member: KnownMember, attach: Attach, now: float) -> Iterator[Command]:
        """Handle Attach: a member describes its model and the addresses of its data plane."""
        population = self._population
        if member.phase is not Phase.WELCOMED:
            return  # said again after a lost connection
        try:
            layout = Layout.from_wire(attach.layout)
            check_reachable(attach.endpoint)
            for address in attach.near:
                check_near(address)
            check_key(population, attach.key, encrypted=self._encrypted)
        except ValueError as error:
            yield from population.dismiss(member, f"cannot be attached: {error}")
            return
        if population.started and member.saved:
            what = "came when the run had gone on from its checkpoint"
            yield from population.expel(member, what)
            return
        member.endpoint, member.key = attach.endpoint, attach.key
        member.near, member.place = tuple(attach.near), attach.place
        resumes = self._resumption is not None
        if reason := misfit(population, member, layout, attach.rounds, resumes=resumes):
            yield Event(f"refused: {reason}", What.REFUSED, member.id)
            yield from self._population.turn_away(member, reason)
            yield population.waiting()
            return
        if not population.started:
            population.total_rounds = attach.rounds
            yield Keep(("total_rounds", attach.rounds))
        member.layout, member.phase = layout, Phase.ATTACHED
        member.versions = attach.versions
        member.no_snapshots = attach.no_snapshots
        self._latest_arrival = now
        yield Keep(member)
        if not population.started and len(population.attached()) >= population.expected:
            yield from self._start()

    def ready(self, member: KnownMember) -> None:
        """Handle Ready: a newcomer holds a snapshot."""
        if member.phase is not Phase.ATTACHED or member.donor is None:
            return
        member.ready = True  # what follows is `enter`, once no average is being taken

    def enter(self, member: KnownMember) -> Iterator[Command]:
        """Put a newcomer that holds a snapshot into the next roster."""
        population = self._population
        member.ready = False
        if population.ending:
            yield from population.turn_away(member, "the run is ending: its last rounds are on")
            return
        member.donor = None
        yield from population.enrol([*population.enrolled(), member])
        text = f"{member} takes part from round {population.roster.first} on"
        yield Event(text, What.ENTERED, member.id)

    def tick(self, now: float, patience: float) -> Iterator[Command]:
        """Handle the passing of time before the start of the run.

        Once no worker has come for `patience` seconds, name the checkpoints that are missing. If
        `min_n` is not 0 and at least `min_n` members are attached, also start the run.
        """
        population = self._population
        fewest = population.config.operation.min_n
        if population.started or population.ended:
            return
        if now - self._latest_arrival >= patience:
            yield from self._say_who_is_missing()
        if not fewest:
            return
        here = len(population.attached())
        if here >= fewest and now - self._latest_arrival >= patience:
            yield Event(f"going on with {here} of {population.config.n} members", What.GOES_ON)
            yield from self._start()

    def _say_who_is_missing(self) -> Iterator[Command]:
        """Name the checkpoints that no worker has brought, once for each set of present members."""
        population, resumption = self._population, self._resumption
        here = {member.id for member in population.members.values()}
        if resumption is None or not here or self._said_missing == here:
            return
        self._said_missing = here
        if text := resumption.missing(here):
            yield Event(text, What.WAITING)

    def turn_newcomers_away(self) -> Iterator[Command]:
        """After the start, refuse all waiting newcomers: no member can give them its state."""
        for newcomer in self._population.attached() if self._population.started else ():
            yield from self._population.turn_away(newcomer, too_late(self._population))

    def _take_in(self, member: KnownMember, now: float) -> Iterator[Command]:
        population = self._population
        self._latest_arrival = now
        population.members[member.identity] = member
        population.given.add(member.id)
        if self._resumption is not None:
            expected = self._resumption.expected(population.members.values())
            population.expected = min(population.config.n, expected)
        yield Keep(member)
        yield self._joined(member)
        yield Send(member.identity, self._welcome(member))

    def _joined(self, member: KnownMember) -> Event:
        population = self._population
        here = f"({len(population.members)} of {population.expected})"
        for gone in reversed(population.departed):
            if (gone.host, gone.pid) == (member.host, member.pid):
                text = f"{member} joined again, as member {gone.member} it was dropped {here}"
                return Event(text, What.REJOINED, member.id)
        return Event(f"{member} joined {here}", What.JOINED, member.id)

    def _welcome(self, member: KnownMember) -> Welcome:
        config = self._population.config.to_wire()
        resumes = bool(member.saved)
        return Welcome(member.id, self._run, self._origin, self._name, config, resumes)

    def _start(self) -> Iterator[Command]:
        population = self._population
        present = sorted(population.attached(), key=lambda m: m.id)
        if reason := unreachable(present):
            yield from population.stop(reason, 2)
            return
        if self._resumption is not None:
            yield from self._rewind(self._resumption, present)
            return
        population.publication = Publication(population.config, population.total_rounds)
        yield from population.enrol(present)
        yield Started(tuple(present))
        text = f"{len(present)} members are here"
        if self._population.config.training.init == "same":
            text += f" and fetch member {present[0].id}'s state"
        yield Event(text, What.SNAPSHOT)
        layout = present[0].layout
        if layout is not None and population.config.method.name in {"wash", "wash-opt"}:
            yield Event(layers_in_words(layout, population.config.method.schedule), What.LAYERS)
        if layout is not None and (text := buffers_in_words(layout)):
            yield Event(text, What.LAYERS)

    def _rewind(self, resumption: Resumption, present: list[KnownMember]) -> Iterator[Command]:
        """Go back to the checkpoint that most of the `present` members hold; expel the others."""
        population = self._population
        number = resumption.most_hold(present)
        without = [member for member in present if number not in member.saved]
        present = [member for member in present if number in member.saved]
        self._resumption = None
        population.kept = number
        for member in present:
            member.saved = {number}  # later ones are deleted, and planned anew
        yield Rewind(number)
        yield Keep(("life", population.next_generation))
        yield Keep(("checkpoint", [number, [member.id for member in present]]))
        population.history = resumption.rosters_until(number)
        population.departed = resumption.departed_at(number, present)
        for gone in population.departed:
            yield Keep(gone)
        population.publication = Publication(
            population.config, population.total_rounds, published=number, fastest=number
        )
        yield from population.enrol(present)
        yield Started(tuple(present))
        text = f"{len(present)} members go on from their checkpoints of round {number}"
        yield Event(text, What.GOES_ON)
        for member in without:
            yield from population.expel(member, f"has no checkpoint of round {number}")


def _refuse(identity: bytes, who: Hello | Claim, reason: str) -> Iterator[Command]:
    yield Event(f"refused {who.host}, process {who.pid}: {reason}", What.REFUSED)
    yield Send(identity, Refuse(reason))
