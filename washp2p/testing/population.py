"""A simulated run: a coordinator, N worker processes, and what happens to them."""

from __future__ import annotations

import sqlite3
from random import Random
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig
from washp2p.protocol.patience import Patience
from washp2p.runfolder.runlog import Joined, stands
from washp2p.testing.coordinator import PLACE, SimulatedCoordinator
from washp2p.testing.events import Events
from washp2p.testing.faults import Faults
from washp2p.testing.memory import Host
from washp2p.testing.network import Network
from washp2p.testing.points import ANY, Points
from washp2p.testing.process import SimulatedProcess, World
from washp2p.testing.tasks import ToyTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.protocol.roster import MemberId
    from washp2p.runfolder.runlog import Jump, Record
    from washp2p.testing.tasks import Task

STEP_SECONDS = 0.05
LONGEST = 24 * 3600.0
"""Virtual seconds after which a run counts as stuck."""
CLOCKS = 1e6
"""Seconds by which the clocks of hosts differ at most."""
LAST_WORDS = 120.0
"""Virtual seconds in which the coordinator must end after its workers, another one if it is killed.
"""


class SimulatedRun:
    """One run in virtual time; everything in it follows from `seed`.

    `n` members train `task` for `rounds` rounds, and there is `room` for newcomers.
    A step takes about `step_seconds`, of some members twice or half as long. `options` are those of
    a run, as `RunConfig.resolve` takes them (`p`, `method`, `max_delay`, ...).
    """

    def __init__(
        self,
        *,
        seed: int,
        n: int,
        room: int = 0,
        rounds: int,
        task: Task | None = None,
        step_seconds: float = STEP_SECONDS,
        **options: Any,
    ) -> None:
        self.step_seconds = step_seconds
        self.config = RunConfig.resolve(n=n + room, min_n=n if room else 0, seed=seed, **options)
        self.faults = Faults(self, Random(seed))
        """What befalls it."""
        self.events = Events()
        """Virtual time."""
        self._random = Random(seed)
        self._key = seed.to_bytes(8, "big")
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        """Where its coordinators' journal is."""
        self.told: list[str] = []
        """What the coordinators have told people."""
        self._points = Points(lambda: self.processes_at[self.network.acting])
        self.network: Network = Network(
            self.events, self._random, Patience(self.config.operation.patience)
        )
        self.coordinator = self._coordinator(goes_on=False)
        """The present one, or the last."""
        self.world = World(
            self.network,
            self._random,
            task or ToyTask(),
            rounds,
            self._tell,
            self.faults.dropped,
        )
        self.processes: dict[int, SimulatedProcess] = {}
        """All workers that were ever started, by number."""
        self.founders = n
        """How many workers begin the run; those with higher numbers come later."""
        self.processes_at: dict[str, int] = {}
        """Their numbers, by place."""
        self._by_identity: dict[bytes, SimulatedProcess] = {}
        for _ in range(n):
            self.start()

    def start(self, host: Host | None = None, endpoint: str = "") -> int:
        """Start a worker now, on `host` and listening at `endpoint` (default: new ones).

        Returns its number.
        """
        number = len(self.processes)
        seconds = self.step_seconds * self._random.choice([0.5, 1.0, 1.0, 2.0])
        self.processes[number] = process = SimulatedProcess(
            self.world,
            number,
            endpoint or self.network.new_endpoint(),
            host or Host(self._random.uniform(0.0, CLOCKS)),
            step_seconds=seconds,
        )
        self._by_identity[process.identity] = process
        self.processes_at[process.place] = number
        return number

    def join(self, *, at: float, anywhere: bool = False) -> None:
        """Start a worker at the time `at`, unless the run has ended.

        It listens at a new address; or, `anywhere`, perhaps at one that another has or had.
        """

        def start() -> None:
            if self.coordinator.end is None:
                self.start(endpoint=self.network.drawn_endpoint() if anywhere else "")

        self.events.at(at, start)

    def take_over(self, *, resumes: bool) -> None:
        """Start a coordinator in place of one that has died.

        With `resumes` it waits for workers that hold checkpoints.
        """
        self.coordinator = self._coordinator(goes_on=True, resumes=resumes)

    def at_point(self, point: str, befall: Callable[[int], None], *, worker: int = ANY) -> None:
        """Call `befall` once, with its number, as soon as a worker is at a point of `hold_points`.

        `worker` is the one meant (default: any). It is in the midst of something.
        """
        self._points.add(point, worker, befall)

    def finish(self, until: float = LONGEST) -> None:
        """Let time pass until all processes have ended.

        Raises AssertionError if they have not by the virtual time `until`.
        """
        with self._points.watched():
            self._finish(until)

    def _finish(self, until: float) -> None:
        def over() -> bool:
            alive = any(process.alive for process in self.processes.values())
            return not (self.faults.starting or alive)

        ended = self.events.run(over, until)
        assert ended, "\n".join(["the run is stuck", *self.told[-20:]])
        self.events.run(lambda: self.coordinator.end is not None, self.events.now + LAST_WORDS)

    @property
    def members(self) -> dict[MemberId, SimulatedProcess]:
        """All processes that became members, by member id."""
        found = {process.member: process for process in self.processes.values()}
        return {member: found[member] for member in sorted(found) if member >= 0}

    def records(self, member: MemberId) -> list[Record | Jump | Joined]:
        """What a member's run log says, without what was discarded, as `runlog.read_log`."""
        rosters = self.coordinator.rosters
        return [
            record
            for record in self.members[member].log.records
            if isinstance(record, Joined) or stands(rosters, record.round, record.generation)
        ]

    @property
    def over(self) -> tuple[MemberId, ...]:
        """The members of the last average; none if nobody has it."""
        for process in reversed(self.processes.values()):  # an earlier life may have had one, too
            if process.averaged is not None and process.core is not None:
                return process.core.members
        return ()

    def _coordinator(self, *, goes_on: bool, resumes: bool = False) -> SimulatedCoordinator:
        return SimulatedCoordinator(
            self.network,
            self.config,
            run=self._key,
            database=self.database,
            send=self._send,
            died=self.faults.coordinator_died,
            told=self.told,
            clock=self._random.uniform(0.0, CLOCKS),
            goes_on=goes_on,
            resumes=resumes,
        )

    def _tell(self, identity: bytes, data: bytes) -> None:
        self.coordinator.receive(identity, data)

    def _send(self, identity: bytes, data: bytes) -> bool:
        process = self._by_identity[identity]
        return process.session.send(PLACE, lambda: process.hear(data))
