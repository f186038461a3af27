"""A simulated worker's talk with its coordinator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from washp2p.coordinator_link.absence import Absence
from washp2p.coordinator_link.conversation import Conversation
from washp2p.errors import UnreachableError
from washp2p.testing.coordinator import PLACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.testing.memory import Host
    from washp2p.testing.network import Network


class Process(Protocol):
    """What a conversation needs of its process."""

    number: int
    identity: bytes
    place: str
    alive: bool
    host: Host

    @property
    def now(self) -> float:
        """What its host's clock shows."""

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in `seconds`, or later if the process is stopped then."""

    def acts(self) -> None:
        """Count an act, and die if it is the one."""

    def wake(self) -> None:
        """Look again: the coordinator has told something, or time has passed."""


class SimulatedConversation(Conversation):
    """A worker's talk with its coordinator over the simulated network."""

    def __init__(
        self, network: Network, process: Process, tell: Callable[[bytes, bytes], None]
    ) -> None:
        """`tell` brings the process's identity and a message to the coordinator."""
        super().__init__("tcp://coordinator:5555", "simulated", process.number, process.place, None)
        self._tell = tell
        self._process = process
        self.absence = Absence(self.address, process.now)
        """How long there has been no coordinator."""
        self.session = network.open(process.place, PLACE, self._made, self._broke)
        """Its connection."""

    @property
    def decided(self) -> bool:
        """Whether the coordinator has answered."""
        return self._welcome is not None or self._failure is not None

    def take(self, data: bytes) -> None:
        """Take a message that has arrived."""
        self.absence.heard(self._process.now)
        self.hear(data)

    def give_up(self) -> None:
        """No coordinator has answered."""
        self._fail(UnreachableError(f"no coordinator answered at {self.address}"))

    def begin(self) -> None:
        super().begin()
        self.absence.patience = self.patience

    def _made(self, again: bool) -> None:
        self.absence.end(self._process.now)
        if again:
            for data in list(self.what_may_be_missed()):
                self._send(data)

    def _broke(self, place: str) -> None:
        if place == self._process.place and not self.absence.lasts:
            self.absence.begin(self._process.now)
            self._wait_for_another()

    def _wait_for_another(self) -> None:
        if self.absence.lasts and self._process.alive:
            problem = self.absence.problem(self._process.now)
            if problem is not None:
                self._fail(problem)
            else:
                self._process.after(self.absence.patience.ping, self._wait_for_another)

    def _send(self, data: bytes) -> None:
        self._process.acts()
        self.session.send(self._process.place, partial(self._tell, self._process.identity, data))

    def _answer(self, data: bytes) -> None:
        self._send(data)

    def _announce(self) -> None:
        self._process.wake()

    def _open_folder(self, name: str) -> None:
        pass

    def _held(self, name: str, rounds: Sequence[int]) -> list[tuple[int, MemberId]]:
        held = self._process.host.checkpoints
        return [(number, member) for number, member in sorted(held) if number in rounds]

    def _forget(self, rounds: range) -> None:
        self._process.host.forget(rounds)
