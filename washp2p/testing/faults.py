"""Faults of a simulated run, at chosen times or points."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

from washp2p.testing.coordinator import PLACE
from washp2p.testing.events import Killed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from random import Random

    from washp2p.testing.coordinator import SimulatedCoordinator
    from washp2p.testing.events import Events
    from washp2p.testing.memory import Host
    from washp2p.testing.network import Network
    from washp2p.testing.process import SimulatedProcess

MILD = 0.75
"""A fault this share of the limit long has no consequences."""


class Run(Protocol):
    """The parts of a `SimulatedRun` that faults act on."""

    events: Events
    network: Network
    coordinator: SimulatedCoordinator
    processes: dict[int, SimulatedProcess]
    processes_at: dict[str, int]
    database: sqlite3.Connection

    def start(self, host: Host | None = None, endpoint: str = "") -> int:
        """Start a worker now, on `host`. Returns its number."""

    def take_over(self, *, resumes: bool) -> None:
        """Start a coordinator in place of one that has died."""


class Faults:
    """Injects faults into a run. Times are virtual, in seconds. Workers are given by number."""

    def __init__(self, run: Run, random: Random) -> None:
        self._run = run
        self._random = random
        self._replaced_after = 0.0
        self._resumes = False
        self.starting = 0
        """How many workers are still to be started again."""
        self.power_lost_before: int | None = None
        """The number of the first worker that was started after the last power loss, if any was."""
        self.disturbed: set[int] = set()
        """The numbers of workers to which something is done that they may not survive."""
        self.touched: set[int] = set()
        """The numbers of workers to which anything is done."""
        self.delays = 0
        """How many steps are delayed without a report."""
        self.cut_links: set[frozenset[int]] = set()
        """The pairs of workers between which a path is cut."""
        self.coordinators_lost = 0
        """How many coordinators have died."""
        self.without_coordinator = 0.0
        """For how many seconds there is none, in all."""
        self._struck: Counter[tuple[str, str]] = Counter()

    @property
    def struck(self) -> Counter[tuple[str, str]]:
        """How often each fault has struck, by its name and the state of the worker or the run."""
        in_act = [p for p in self._run.processes.values() if p.died_in_act]
        return self._struck + Counter(("kill in act", p.killed_while) for p in in_act)

    def kill(self, number: int, *, at: float) -> None:
        """Kill worker `number` at the time `at`: its host tells that its connections are closed."""
        self._disturb(number)
        self._strike("kill", number, at, self._run.processes[number].kill)

    def stop(self, number: int, *, at: float, seconds: float) -> None:
        """Stop worker `number` at the time `at`, and let it go on after `seconds`."""
        self._disturb(number, mildly=seconds < MILD * self._run.network.patience.dead)
        self._run.processes[number].out_of_action += seconds
        place = self._run.processes[number].place
        self._strike("stop", number, at, lambda: self._run.network.stop(place))
        self._run.events.at(at + seconds, lambda: self._run.network.go_on(place))

    def stop_now(self, number: int, *, seconds: float) -> None:
        """Stop the worker that is doing something, before whatever it does next, for `seconds`."""
        place = self._run.processes[number].place
        self.stop(number, at=self._run.events.now, seconds=seconds)
        self._run.network.stop(place)

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
        patience = self._run.network.patience
        short = patience.dead if other is None else patience.mute
        for one in {number, number if other is None else other}:
            self._disturb(one, mildly=seconds < MILD * short)
        here = self._run.processes[number].place
        if other is None:
            self._run.processes[number].out_of_action += seconds
        else:
            self.cut_links.add(frozenset((number, other)))
        there = PLACE if other is None else self._run.processes[other].place
        what = "cut from coordinator" if other is None else "cut"
        self._strike(what if both else f"{what}, one way", number, at, _nothing)
        for source, target in _ways(here, there, both=both):
            self._run.events.at(at, partial(self._run.network.cut, source, target))
            self._run.events.at(at + seconds, partial(self._run.network.heal, source, target))

    def kill_coordinator(self, *, at: float, seconds: float) -> None:
        """Kill the coordinator at the time `at`. After `seconds` another takes over the run."""

        def kill() -> None:
            self._replaced_after = seconds
            self._run.coordinator.die()

        self._strike("coordinator", None, at, kill)

    def fill_disk(self, number: int, *, at: float, seconds: float, logs: bool = False) -> None:
        """Leave no room for checkpoints on the host of worker `number`, at the time `at`, for
        `seconds`; or, with `logs`, none for run logs.
        """
        host, what = self._run.processes[number].host, "logs_full" if logs else "full"
        self._strike("log disk" if logs else "disk", number, at, partial(setattr, host, what, True))
        self._run.events.at(at + seconds, partial(setattr, host, what, False))

    def fill_journal(self, *, at: float, seconds: float) -> None:
        """Leave no room for the coordinator's journal at the time `at`, for `seconds`.

        A coordinator that is killed meanwhile cannot be replaced.
        """

        def fill(full: bool) -> None:  # SQLite refuses to write
            self._run.database.execute(f"PRAGMA query_only = {full:d}")

        self._strike("journal disk", None, at, partial(fill, True))
        self._run.events.at(at + seconds, partial(fill, False))

    def occupy(self, number: int, *, at: float, seconds: float) -> None:
        """Delay a step of worker `number` by `seconds`, after it has reported that it is busy."""
        self.touched.add(number)
        host = self._run.processes[number].host
        self._strike("busy", number, at, partial(setattr, host, "busy", seconds))

    def slow_down(self, number: int, *, at: float, seconds: float) -> None:
        """Delay a step of worker `number` by `seconds`, without a report."""
        self.delays += 1
        self._disturb(number, mildly=seconds < MILD * self._run.network.patience.stalled)
        host = self._run.processes[number].host
        self._strike("slow", number, at, partial(setattr, host, "slow", seconds))

    def put_clock_forward(self, number: int, *, at: float, seconds: float) -> None:
        """Let the clock of worker `number` jump forward at the time `at`."""
        self._disturb(number, mildly=seconds < MILD * self._run.network.patience.dead)
        host = self._run.processes[number].host

        def jump() -> None:
            host.clock += seconds

        self._strike("clock", number, at, jump)

    def put_coordinators_clock_forward(self, *, at: float, seconds: float) -> None:
        """Let the coordinator's clock jump forward at the time `at`."""
        for number in self._run.processes:
            self._disturb(number)

        def jump() -> None:
            self._run.coordinator.clock += seconds

        self._strike("coordinator's clock", None, at, jump)

    def kill_all(self, *, at: float, seconds: float, power: bool = False) -> None:
        """Kill all processes at the time `at`, if there is a checkpoint to go on from.

        If the `power` fails, their hosts lose what was written and not made to last. After
        `seconds` a coordinator resumes the run, with a worker on each host.
        """
        self._run.events.at(at, lambda: self._fail(seconds, power=power))

    def diverge(self, number: int, *, at: float) -> None:
        """Let the model of worker `number` be no numbers from the time `at` on."""
        self._disturb(number)
        host = self._run.processes[number].host

        def diverge() -> None:
            host.diverges = True

        self._strike("diverge", number, at, diverge)

    def kill_now(self, number: int) -> None:
        """Kill the worker that is doing something."""
        self._disturb(number)
        self._run.processes[number].kill()
        raise Killed

    def isolate(self, number: int, *, seconds: float, both: bool = True) -> None:
        """Cut worker `number` off from everybody, now, for `seconds`. Without `both`, others still
        reach it.
        """
        self._disturb(number)
        self._run.processes[number].out_of_action += seconds
        here, network = self._run.processes[number].place, self._run.network
        for there in sorted({PLACE, *self._run.processes_at} - {here}):
            for source, target in _ways(here, there, both=both):
                network.cut(source, target)
                self._run.events.after(seconds, partial(network.heal, source, target))

    def kill_in_act(self, number: int, act: int) -> None:
        """Kill worker `number` in its act of this number: before it sends, or as it logs."""
        self._disturb(number)
        self._run.processes[number].dies_at = act

    def kill_coordinator_in_act(self, message: int, *, seconds: float) -> None:
        """Kill the coordinator before it sends its message of this number. After `seconds` another
        takes over.
        """
        self._run.coordinator.dies_at = message
        self._replaced_after = seconds

    def _disturb(self, number: int, *, mildly: bool = False) -> None:
        self.touched.add(number)
        if not mildly:
            self.disturbed.add(number)

    def _strike(self, what: str, number: int | None, at: float, action: Callable[[], None]) -> None:
        """Let a fault strike worker `number`, or the coordinator, at the time `at`."""

        def strike() -> None:
            self._note(what, number)
            action()

        self._run.events.at(at, strike)

    def _note(self, what: str, number: int | None) -> None:
        run = self._run
        state = run.coordinator.state if number is None else run.processes[number].state
        self._struck[what, state] += 1

    def dropped(self, process: SimulatedProcess) -> None:
        """Start a worker again that was dropped before it trained, as `python -m workers` does."""
        self._disturb(process.number)
        self.starting += 1
        self._run.events.after(0.0, partial(self._start_again, process.host))

    def coordinator_died(self) -> None:
        """Replace the dead coordinator after the time that was set."""
        if self._run.coordinator.died_in_act:
            self._struck["coordinator in act", "sending"] += 1
        self.coordinators_lost += 1
        self.without_coordinator += self._replaced_after
        self._run.events.after(self._replaced_after, self._take_over)

    def _take_over(self) -> None:
        resumes, self._resumes = self._resumes, False
        self._run.take_over(resumes=resumes)

    def _fail(self, seconds: float, *, power: bool) -> None:
        if self._run.coordinator.end is not None or not self._run.coordinator.kept:
            return
        self._note("power loss" if power else "all", None)
        self._replaced_after = seconds
        self._resumes = True
        if power:
            self.power_lost_before = len(self._run.processes)
        self._run.coordinator.die()
        for number, process in self._run.processes.items():
            self._disturb(number)
            if power and process.alive:
                process.log.lose_power(self._random)
            process.kill()
        hosts = {id(process.host): process.host for process in self._run.processes.values()}
        self.starting += len(hosts)
        for host in hosts.values():
            self._run.events.after(seconds, partial(self._start_again, host))

    def _start_again(self, host: Host) -> None:
        self._disturb(self._run.start(host))
        self.starting -= 1


def _ways(here: str, there: str, *, both: bool) -> list[tuple[str, str]]:
    """The directions of a path that are cut: source and target."""
    return [(here, there), (there, here)] if both else [(here, there)]


def _nothing() -> None:
    pass
