"""A simulated run: a coordinator, N worker processes, and what happens to them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig
from washp2p.testing.coordinator import PLACE, SimulatedCoordinator
from washp2p.testing.events import Events
from washp2p.testing.network import Network
from washp2p.testing.process import SimulatedProcess, World
from washp2p.testing.tasks import ToyTask

if TYPE_CHECKING:
    from washp2p.protocol.roster import MemberId
    from washp2p.testing.tasks import Task

STEP_SECONDS = 0.05
LONGEST = 24 * 3600.0
"""Virtual seconds after which a run counts as stuck."""


class SimulatedRun:
    """One run in virtual time; everything in it follows from `seed`.

    `n` members train `task` for `rounds` rounds. A step takes about `step_seconds`, of some members
    twice or half as long. `options` are those of a run, as
    `RunConfig.resolve` takes them (`p`, `method`, `max_delay`, ...).
    """

    def __init__(
        self,
        *,
        seed: int,
        n: int,
        rounds: int,
        task: Task | None = None,
        step_seconds: float = STEP_SECONDS,
        **options: Any,
    ) -> None:
        self._step_seconds = step_seconds
        self.config = RunConfig.resolve(n=n, seed=seed, **options)
        self.events = Events()
        self._random = Random(seed)
        network = Network(self.events, self._random)
        network.add(PLACE)
        self.coordinator = SimulatedCoordinator(
            self.events, self.config, seed.to_bytes(8, "big"), self._send
        )
        self._network = network
        self.world = World(
            self.events,
            network,
            self._random,
            task or ToyTask(),
            rounds,
            self.coordinator.receive,
        )
        self.processes: dict[int, SimulatedProcess] = {}
        """All workers that were ever started, by number."""
        self._by_identity: dict[bytes, SimulatedProcess] = {}
        for _ in range(n):
            self.start()

    def start(self) -> int:
        """Start a worker now. Returns its number."""
        number = len(self.processes)
        seconds = self._step_seconds * self._random.choice([0.5, 1.0, 1.0, 2.0])
        self.processes[number] = process = SimulatedProcess(
            self.world, number, step_seconds=seconds
        )
        self._by_identity[process.identity] = process
        return number

    def kill(self, number: int, *, at: float) -> None:
        """Kill worker `number` at the time `at`: its host tells that the connection is closed."""
        self.events.at(at, lambda: self._die(self.processes[number]))

    def finish(self, until: float = LONGEST) -> None:
        """Let time pass until all processes have ended.

        Raises AssertionError if they have not by the virtual time `until`.
        """
        ended = self.events.run(
            lambda: not any(process.alive for process in self.processes.values()), until
        )
        assert ended, "\n".join(["the run is stuck", *self.coordinator.told[-20:]])
        last_words = self.events.now + self.config.operation.patience
        self.events.run(lambda: self.coordinator.end is not None, last_words)

    @property
    def members(self) -> dict[MemberId, SimulatedProcess]:
        """All processes that became members, by member id."""
        found = {process.member: process for process in self.processes.values()}
        return {member: found[member] for member in sorted(found) if member >= 0}

    @property
    def over(self) -> tuple[MemberId, ...]:
        """The members of the last average."""
        return next(
            core.members
            for process in self.processes.values()
            if process.averaged is not None and (core := process.core) is not None
        )

    def _send(self, identity: bytes, data: bytes) -> None:
        process = self._by_identity[identity]
        self._network.carry(PLACE, process.place, lambda: process.hear(data))

    def _die(self, process: SimulatedProcess) -> None:
        if process.alive:
            process.die()
            gone = process.identity
            self._network.carry(process.place, PLACE, lambda: self.coordinator.gone(gone))
