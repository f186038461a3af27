"""A simulated coordinator: the real state machine, on a simulated network and clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.commands import EndRun, Event, Reject, Send
from coordinator.machine.membership import Membership
from washp2p.errors import ProtocolError
from washp2p.protocol.messages.control import messages
from washp2p.protocol.patience import Patience
from washp2p.protocol.version import DERIVATION, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.machine.commands import Command
    from washp2p.config.config import RunConfig
    from washp2p.protocol.roster import Roster
    from washp2p.testing.events import Events

PLACE = "coordinator"


class SimulatedCoordinator:
    """Carries out what the state machine commands. `send` brings bytes to a worker."""

    def __init__(
        self, events: Events, config: RunConfig, run: bytes, send: Callable[[bytes, bytes], None]
    ) -> None:
        self._events = events
        self._send = send
        self._ping = Patience(config.operation.patience).ping
        self._membership = Membership(
            config, run=run, name="simulated", version=VERSION, derivation=DERIVATION
        )
        self.end: EndRun | None = None
        """How the run has ended, once it has."""
        self.refused: list[str] = []
        """Why messages were refused."""
        self.told: list[str] = []
        """Its events, for people."""
        events.after(self._ping, self._tick)

    @property
    def rosters(self) -> list[Roster]:
        """All rosters there have been, in order."""
        return list(self._membership.population.rosters)

    def receive(self, identity: bytes, data: bytes) -> None:
        """Take a message of the worker `identity`."""
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            self.refused.append(str(error))
            return
        self._carry_out(self._membership.receive(identity, message, self._events.now))

    def gone(self, identity: bytes) -> None:
        """The connection to the worker `identity` is closed."""
        self._carry_out(self._membership.gone(identity, self._events.now))

    def _tick(self) -> None:
        self._carry_out(self._membership.tick(self._events.now))
        if self.end is None:
            self._events.after(self._ping, self._tick)

    def _carry_out(self, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Send(identity, message):
                    self._send(identity, messages.encode(message))
                case Event(text):
                    self.told.append(f"{self._events.now:9.3f} {text}")
                case Reject(_, what) if not what.endswith("of no member"):  # sent before it knew
                    self.refused.append(what)
                case EndRun():
                    self.end = command
