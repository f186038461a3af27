"""A simulated coordinator: the real state machine and journal, on a simulated network and clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.machine.commands import EndRun, Event, Reject
from coordinator.machine.membership import Membership
from coordinator.service.command_runner import CommandRunner
from coordinator.service.journal import Journal
from coordinator.service.opening import open_run
from washp2p.errors import ProtocolError
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Ping
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.testing.events import Killed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from coordinator.machine.commands import Command
    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.testing.network import Network

PLACE = "coordinator"


class SimulatedCoordinator:
    """One coordinator process. `send` brings bytes to a worker, and says whether it is connected.

    With `goes_on` it takes over the run whose journal is in `database`; with `resumes`, too, from
    the checkpoints of that run's members. `told` gets its events.
    """

    def __init__(
        self,
        network: Network,
        config: RunConfig,
        *,
        run: bytes,
        database: sqlite3.Connection,
        send: Callable[[bytes, bytes], bool],
        died: Callable[[], None],
        told: list[str],
        clock: float,
        goes_on: bool = False,
        resumes: bool = False,
    ) -> None:
        self._network = network
        self._events = network.events
        self._send = send
        self._died = died
        self.dies_at = 0
        """The number of the message before which it dies; 0 for none."""
        self._sent = 0
        self.clock = clock
        """By how many seconds its clock is ahead of virtual time."""
        self.end: EndRun | None = None
        """How the run has ended, once it has."""
        self.refused: list[str] = []
        """Why messages were refused."""
        self.told = told
        """Its events, for people."""
        self.alive = True
        """Whether it runs."""
        self._journal = journal = Journal(Path("simulated"), self._tell, database)
        if not goes_on:
            journal.keep(("run", run))
            journal.commit()
        opening = open_run(
            journal, Path("simulated"), resume=resumes, goes_on=goes_on, encrypted=False
        )
        self._membership = Membership(
            config,
            run=opening.run,
            origin=opening.origin,
            name="simulated",
            version=VERSION,
            derivation=DERIVATION,
        )
        self._runner = CommandRunner(journal, self._deliver, self._perform)
        network.add(PLACE)
        if opening.resumes:
            self._runner.run(self._membership.resume(opening.past))
        elif goes_on:
            self._runner.run(self._membership.go_on(opening.past, self._now))
        self._tick_later()

    @property
    def rosters(self) -> list[Roster]:
        """All rosters there have been, in order, of lives that were gone on with, too."""
        population = self._membership.population
        return [*population.history, *population.rosters]

    @property
    def checkpoint(self) -> tuple[int, list[MemberId]]:
        """The round of the last complete checkpoint by the journal (0: none), and who holds it."""
        number, members = self._journal.fact("checkpoint", [0, []])
        return number, members

    @property
    def kept(self) -> int:
        """The round of the last checkpoint that all members have; 0 if there is none."""
        return self._membership.population.kept

    @property
    def state(self) -> str:
        """The state of its run in words."""
        population = self._membership.population
        if self.end is not None or not self.alive:
            return "gone"
        if not population.started or not population.publication.begun:
            return "starting"
        return "averaging" if population.averaging else "training"

    @property
    def died_in_act(self) -> bool:
        """Whether it has died before the message `dies_at`."""
        return not self.alive and self._sent == self.dies_at

    @property
    def evaluated(self) -> bool:
        """Whether a member has told how good the average is."""
        return bool(self._membership.population.accuracy)

    @property
    def _now(self) -> float:
        return self._events.now + self.clock

    def receive(self, identity: bytes, data: bytes) -> None:
        """Take a message of the worker `identity`."""
        if self.end is not None:
            return
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            self.refused.append(str(error))
            return
        self._runner.run(self._membership.receive(identity, message, self._now))

    def die(self) -> None:
        """End at once, like a process that is killed. What was not committed is lost."""
        if self.alive and self.end is None:
            self.alive = False
            self._network.remove(PLACE, for_good=False)
            self._died()

    def _tick_later(self) -> None:
        self._events.after(
            self._network.patience.ping, lambda: self._network.act(PLACE, self._tick)
        )

    def _tick(self) -> None:
        if self.alive and self.end is None:
            self._tick_later()
            self._runner.run(self._membership.tick(self._now))
            self._runner.run(self._membership.population.tell(Ping()))

    def _deliver(self, identity: bytes, _: Message, data: bytes) -> bool:
        self._sent += 1
        if self._sent == self.dies_at:
            self.die()
            raise Killed
        connected = self._send(identity, data)
        if not connected and not self._runner.has_unreachable:
            self._events.after(0.0, lambda: self._network.act(PLACE, self._bury))
        return connected

    def _bury(self) -> None:
        if self.alive:
            gone = self._membership.gone
            self._runner.give_up_unreachable(lambda identity: gone(identity, self._now))

    def _perform(self, command: Command) -> None:
        match command:
            case Event(text):
                self._tell(text)
            case Reject(_, what) if not what.endswith("of no member"):  # sent before it knew
                self.refused.append(what)
            case EndRun():
                self.end = command
                self._events.after(0.0, partial(self._network.remove, PLACE))

    def _tell(self, text: str) -> None:
        self.told.append(f"{self._events.now:9.3f} {text}")
