"""A simulated run: a coordinator, N worker processes, and what happens to them."""

from __future__ import annotations

import sqlite3
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig
from washp2p.protocol.patience import Patience
from washp2p.runfolder.runlog import Joined, stands
from washp2p.testing.coordinator import PLACE, SimulatedCoordinator
from washp2p.testing.events import Events, Killed
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
MILD = 0.75
"""Share of the time after which somebody is given up that nobody is given up for."""
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
        self._step_seconds = step_seconds
        self.config = RunConfig.resolve(n=n + room, min_n=n if room else 0, seed=seed, **options)
        self.events = Events()
        """Virtual time."""
        self._random = Random(seed)
        self._key = seed.to_bytes(8, "big")
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self.told: list[str] = []
        """What the coordinators have told people."""
        self._points = Points(lambda: self.processes_at[self.network.acting])
        self._replaced_after = 0.0
        self._resumes = False
        self.power_lost_before: int | None = None
        """The number of the first worker that was started after the last power loss, if any was."""
        self.network = Network(self.events, self._random, Patience(self.config.operation.patience))
        self.coordinator = self._coordinator(goes_on=False)
        """The present one, or the last."""
        self.world = World(
            self.network,
            self._random,
            task or ToyTask(),
            rounds,
            self._tell,
        )
        self.processes: dict[int, SimulatedProcess] = {}
        """All workers that were ever started, by number."""
        self.founders = n
        """How many workers begin the run; those with higher numbers come later."""
        self.disturbed: set[int] = set()
        """The numbers of workers to which something is done that they may not survive."""
        self.touched: set[int] = set()
        """The numbers of workers to which anything is done."""
        self.without_coordinator = 0.0
        """For how many seconds there is none, in all."""
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
        seconds = self._step_seconds * self._random.choice([0.5, 1.0, 1.0, 2.0])
        self.processes[number] = process = SimulatedProcess(
            self.world,
            number,
            endpoint or self.network.new_endpoint(),
            host or Host(),
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

    def kill(self, number: int, *, at: float) -> None:
        """Kill worker `number` at the time `at`: its host tells that its connections are closed."""
        self._disturb(number)
        self.events.at(at, self.processes[number].kill)

    def stop(self, number: int, *, at: float, seconds: float) -> None:
        """Stop worker `number` at the time `at`, and let it go on after `seconds`."""
        self._disturb(number, mildly=seconds < MILD * self.network.patience.dead)
        self.processes[number].out_of_action += seconds
        place = self.processes[number].place
        self.events.at(at, lambda: self.network.stop(place))
        self.events.at(at + seconds, lambda: self.network.go_on(place))

    def stop_now(self, number: int, *, seconds: float) -> None:
        """Stop the worker that is doing something, before whatever it does next, for `seconds`."""
        place = self.processes[number].place
        self.stop(number, at=self.events.now, seconds=seconds)
        self.network.stop(place)

    def cut(
        self,
        number: int,
        other: int | None = None,
        *,
        at: float,
        seconds: float,
        both: bool = True,
    ) -> None:
        """Cut the path from worker `number` to worker `other` (default: to the coordinator).

        With `both`, that in the other direction, too. Both heal after `seconds`.
        """
        short = self.network.patience.dead if other is None else self.network.patience.mute
        for one in {number, number if other is None else other}:
            self._disturb(one, mildly=seconds < MILD * short)
        here = self.processes[number].place
        if other is None:
            self.processes[number].out_of_action += seconds
        there = PLACE if other is None else self.processes[other].place
        for source, target in _ways(here, there, both=both):
            self.events.at(at, partial(self.network.cut, source, target))
            self.events.at(at + seconds, partial(self.network.heal, source, target))

    def kill_coordinator(self, *, at: float, seconds: float) -> None:
        """Kill the coordinator at the time `at`. After `seconds` another takes over the run."""

        def kill() -> None:
            self._replaced_after = seconds
            self.coordinator.die()

        self.events.at(at, kill)

    def fill_disk(self, number: int, *, at: float, seconds: float) -> None:
        """Leave no room on the host of worker `number` at the time `at`, for `seconds`."""
        host = self.processes[number].host

        def fill(full: bool) -> None:
            host.full = full

        self.events.at(at, partial(fill, True))
        self.events.at(at + seconds, partial(fill, False))

    def kill_all(self, *, at: float, seconds: float, power: bool = False) -> None:
        """Kill all processes at the time `at`, if there is a checkpoint to go on from.

        If the `power` fails, their hosts lose what was written and not made to last. After
        `seconds` a coordinator resumes the run, with a worker on each host.
        """
        self.events.at(at, lambda: self._fail(seconds, power=power))

    def diverge(self, number: int, *, at: float) -> None:
        """Let the model of worker `number` be no numbers from the time `at` on."""
        self._disturb(number)
        host = self.processes[number].host

        def diverge() -> None:
            host.diverges = True

        self.events.at(at, diverge)

    def at_point(self, point: str, befall: Callable[[int], None], *, worker: int = ANY) -> None:
        """Call `befall` once, with its number, as soon as a worker is at a point of `hold_points`.

        `worker` is the one meant (default: any). It is in the midst of something.
        """
        self._points.add(point, worker, befall)

    def kill_now(self, number: int) -> None:
        """Kill the worker that is doing something."""
        self._disturb(number)
        self.processes[number].kill()
        raise Killed

    def isolate(self, number: int, *, seconds: float, both: bool = True) -> None:
        """Cut worker `number` off from everybody, now, for `seconds`. Without `both`, others still
        reach it.
        """
        self._disturb(number)
        self.processes[number].out_of_action += seconds
        here, network = self.processes[number].place, self.network
        for there in sorted({PLACE, *self.processes_at} - {here}):
            for source, target in _ways(here, there, both=both):
                network.cut(source, target)
                self.events.after(seconds, partial(network.heal, source, target))

    def kill_in_act(self, number: int, act: int) -> None:
        """Kill worker `number` in its act of this number: before it sends, or as it logs."""
        self._disturb(number)
        self.processes[number].dies_at = act

    def kill_coordinator_in_act(self, message: int, *, seconds: float) -> None:
        """Kill the coordinator before it sends its message of this number. After `seconds` another
        takes over.
        """
        self.coordinator.dies_at = message
        self._replaced_after = seconds

    def finish(self, until: float = LONGEST) -> None:
        """Let time pass until all processes have ended.

        Raises AssertionError if they have not by the virtual time `until`.
        """
        with self._points.watched():
            self._finish(until)

    def _finish(self, until: float) -> None:
        ended = self.events.run(
            lambda: (
                not (self._resumes or any(process.alive for process in self.processes.values()))
            ),
            until,
        )
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
        for process in self.members.values():
            if process.averaged is not None and process.core is not None:
                return process.core.members
        return ()

    def _coordinator(self, *, goes_on: bool, resumes: bool = False) -> SimulatedCoordinator:
        return SimulatedCoordinator(
            self.network,
            self.config,
            run=self._key,
            database=self._database,
            send=self._send,
            died=self._replace_coordinator,
            told=self.told,
            goes_on=goes_on,
            resumes=resumes,
        )

    def _disturb(self, number: int, *, mildly: bool = False) -> None:
        self.touched.add(number)
        if not mildly:
            self.disturbed.add(number)

    def _tell(self, identity: bytes, data: bytes) -> None:
        self.coordinator.receive(identity, data)

    def _send(self, identity: bytes, data: bytes) -> bool:
        process = self._by_identity[identity]
        return process.session.send(PLACE, lambda: process.hear(data))

    def _fail(self, seconds: float, *, power: bool) -> None:
        if self.coordinator.end is not None or not self.coordinator.kept:
            return
        self._replaced_after = seconds
        self._resumes = True
        if power:
            self.power_lost_before = len(self.processes)
        self.coordinator.die()
        for number, process in self.processes.items():
            self._disturb(number)
            if power and process.alive:
                process.log.lose_power(self._random)
            process.kill()
        hosts = {id(process.host): process.host for process in self.processes.values()}
        for host in hosts.values():
            self.events.after(seconds, partial(self._start_again, host))

    def _start_again(self, host: Host) -> None:
        self._disturb(self.start(host))

    def _replace_coordinator(self) -> None:
        self.without_coordinator += self._replaced_after
        self.events.after(self._replaced_after, self._take_over)

    def _take_over(self) -> None:
        self.coordinator = self._coordinator(goes_on=True, resumes=self._resumes)
        self._resumes = False


def _ways(here: str, there: str, *, both: bool) -> list[tuple[str, str]]:
    """The directions of a path that are cut: source and target."""
    return [(here, there), (there, here)] if both else [(here, there)]
