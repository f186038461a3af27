"""The coordinator's event loop: the socket, the clock and the files around `Membership`.

The server notices a closed connection when it next sends to that worker. It pings regularly.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from coordinator.machine.commands import (
    AppendConsensus,
    AppendMetrics,
    EndRun,
    Event,
    Reject,
    Reserve,
    Rewind,
    Started,
    What,
)
from coordinator.machine.membership import Membership
from coordinator.service.command_runner import CommandRunner
from coordinator.service.journal import Journal
from coordinator.service.opening import open_run
from coordinator.service.rate_limits import RateLimits
from coordinator.service.router import Router
from coordinator.service.summary import SummaryFile, summarise
from washp2p.errors import INTERRUPTED, ProtocolError, UsageError
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Ping, Seeds, View
from washp2p.protocol.messages.from_worker import Back, Claim, Hello, Look, Rank
from washp2p.protocol.patience import Patience
from washp2p.protocol.refusals import Reason
from washp2p.protocol.version import DERIVATION, VERSION, installed
from washp2p.runfolder import rundir
from washp2p.runfolder.process_log import complain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from coordinator.machine.commands import Command
    from coordinator.machine.members import KnownMember
    from coordinator.watch.observers import Observers
    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message
    from washp2p.sockets.keys import CoordinatorKeys

DEFAULT_BIND = "tcp://127.0.0.1:5555"
AT_ONCE = 1000
"""Messages taken in before anything else gets its turn."""
LINK_BYTES = 400
"""Bytes to reserve for what the summary says of one link."""


class Server:
    """Runs one population from the first Hello to the summary.

    If the run folder has the journal of an unfinished run, the server goes on with that run.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        observers: Observers,
        *,
        keys: CoordinatorKeys | None = None,
        resume: bool = False,
        hand_over: bool = False,
    ) -> None:
        """With `hand_over`, SIGTERM leaves the run to another coordinator instead of ending it."""
        self._hands_over = hand_over
        self._keys = keys
        self._folder = folder
        self._observers = observers
        self._patience = Patience(config.operation.patience)
        goes_on = rundir.unfinished(folder)
        self._journal = Journal(
            rundir.create(folder, go_on=True) / rundir.JOURNAL,
            lambda text: observers.event(Event(text, What.DISK)),
        )
        self._opening = opening = open_run(
            self._journal,
            folder,
            resume=resume,
            goes_on=goes_on,
            encrypted=keys is not None,
        )
        self._membership = Membership(
            config,
            run=opening.run,
            origin=opening.origin,
            name=rundir.check_name(folder.name),
            version=VERSION,
            derivation=DERIVATION,
            encrypted=keys is not None,
        )
        self._population = self._membership.population
        self._runner = CommandRunner(self._journal, self._deliver, self._perform)
        self._control_bytes: Counter[bytes] = Counter()
        self._seed_bytes: Counter[bytes] = Counter()
        self._rate_limits = RateLimits(
            keys, self._patience, lambda text: observers.event(Event(text, What.REFUSED))
        )
        self._end: EndRun | None = None
        self._summary_file = SummaryFile(
            folder / rundir.SUMMARY, lambda text: observers.event(Event(text, What.DISK))
        )
        self._interrupted = asyncio.Event()
        self._leaves = False

    async def serve(
        self, bind: str | None, *, ready_fd: int | None = None, stay: bool = False
    ) -> int:
        """Listen at `bind` until the run is over. Return the exit code.

        With `stay`, keep serving the status page after the run until interrupted. If `bind` is
        None, listen where the run's coordinator listened before, or at port 5555 of loopback.

        Writes the address and a newline to the file descriptor `ready_fd`, if given, once workers
        may join. Raises UsageError if it cannot listen.
        """
        try:
            self._catch_signals()  # before anybody is told that it is ready
            self._observers.open(self._view, self._membership.observation)
            await self._run(bind, ready_fd)
            code = self._conclude()
            if stay:
                await self._interrupted.wait()
        finally:
            self._observers.close()
        return code

    async def _run(self, bind: str | None, ready_fd: int | None) -> None:
        own = None if self._keys is None else self._keys.own
        self._router = Router(self._patience, own, self._rate_limits.admits)
        try:
            self._listen(bind or self._journal.fact("address") or DEFAULT_BIND, ready_fd)
            if self._opening.resumes:
                self._runner.run(self._membership.resume(self._opening.past))
            elif self._opening.goes_on:
                self._runner.run(self._membership.go_on(self._opening.past, time.monotonic()))
            await self._loop()
        finally:
            self._router.close()
            self._journal.close()

    def _listen(self, bind: str, ready_fd: int | None) -> None:
        address = self._router.listen(bind)
        config = self._population.config
        self._journal.keep(("address", address))
        self._journal.commit()
        if self._opening.resumes or not self._opening.goes_on:
            self._write_config(())
        text = f"coordinator at {address}, {config.n} members wanted, run folder {self._folder}"
        self._observers.event(Event(text, What.LISTENING))
        if ready_fd is not None:
            try:
                with os.fdopen(ready_fd, "w") as ready:
                    ready.write(f"{address}\n")
            except OSError as error:
                raise UsageError(
                    f"--ready-fd {ready_fd}: {error.strerror}; expected an open file descriptor"
                ) from None

    def _write_config(self, members: Iterable[KnownMember]) -> None:
        rundir.write_json(
            self._folder / rundir.CONFIG,
            {
                "run": self._folder.name,
                "config": self._population.config.to_wire(),
                "versions": installed(),
                "members": [
                    {"member": m.id, "host": m.host, "versions": m.versions} for m in members
                ],
            },
        )

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupted.set)
        loop.add_signal_handler(signal.SIGTERM, self._leave)

    def _leave(self) -> None:
        self._leaves = self._hands_over
        self._interrupted.set()

    async def _loop(self) -> None:
        ping_at = time.monotonic()
        poller = zmq.asyncio.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        interrupted = asyncio.ensure_future(self._interrupted.wait())
        while self._end is None or self._summary_file.unwritten:
            arrival = asyncio.ensure_future(poller.poll(round(self._patience.ping * 1000)))
            await asyncio.wait({arrival, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if interrupted.done():
                arrival.cancel()
                if not self._leaves and self._end is None:
                    reason = "the coordinator was interrupted"
                    self._runner.run(self._population.stop(reason, INTERRUPTED))
                return
            for _ in range(AT_ONCE):
                if self._end is not None or not self._router.arrived:
                    break
                self._receive()
            if time.monotonic() >= ping_at:
                ping_at = time.monotonic() + self._patience.ping
                self._runner.run(self._membership.tick(time.monotonic()))
                self._rate_limits.forget_idle()
                self._runner.run(self._population.tell(Ping()))
                self._observers.tick(self._population)
                if self._summary_file.unwritten:
                    self._summary_file.write(self._summary())
            self._bury()
        interrupted.cancel()

    def _bury(self) -> None:
        """Give up the workers whose connections are closed, after reading their last messages."""
        for _ in range(AT_ONCE):
            if not self._runner.has_unreachable or not self._router.arrived:
                break
            self._receive()
        else:
            return
        now = time.monotonic()
        self._runner.give_up_unreachable(lambda identity: self._membership.gone(identity, now))

    def _receive(self) -> None:
        identity, frame, more = self._router.receive()
        if not self._rate_limits.hears(identity, frame):
            return
        data = b"" if more else frame.bytes
        self._rate_limits.charge(identity, len(data))
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            self._rate_limits.refuse(identity, Reason.MALFORMED, str(error))
        else:
            if isinstance(message, Hello | Claim | Back | Rank | Look):
                self._rate_limits.charge_knock(identity)
            if isinstance(message, Look):
                self._router.send(identity, messages.encode(View(self._view(links=True))))
                return
            self._runner.run(self._membership.receive(identity, message, time.monotonic()))
            if identity in self._population.members:
                self._control_bytes[identity] += len(data)
        for offender, what in self._rate_limits.take_offenders().items():
            self._runner.run(self._membership.cut_off(offender, what))  # which tells it so
            self._rate_limits.cut_off(offender, what, frame)

    def _deliver(self, identity: bytes, message: Message, data: bytes) -> bool:
        connected = self._router.send(identity, data)
        if connected and isinstance(message, Seeds):
            self._seed_bytes[identity] += len(data)
        return connected

    def _perform(self, command: Command) -> None:
        match command:
            case AppendMetrics(values):
                self._observers.metrics(values)
            case AppendConsensus(values):
                self._observers.measured(values)
            case Rewind(number):
                self._observers.rewind(number)
            case Started(members):
                self._write_config(members)
            case Reserve():
                self._reserve_summary()
            case Reject(identity, what):
                self._rate_limits.refuse(identity, Reason.CLAIM, what)
            case Event():
                self._tell(command)
            case EndRun(_, code):
                if not code:
                    self._summary_file.write(self._summary())
                self._end = command

    def _tell(self, event: Event) -> None:
        self._observers.event(event)
        if event.what is What.BEGUN:  # its curves have a first point, however short the run is
            self._observers.tick(self._population)

    def _view(self, *, links: bool) -> dict[str, Any]:
        return {
            "run": self._folder.name,
            "version": VERSION,
            "encrypted": self._keys is not None,
            "refused_messages": {str(k): n for k, n in self._rate_limits.refused.items()},
            **self._membership.observation.view(self._population, links=links),
        }

    def _conclude(self) -> int:
        if self._summary_file.unwritten:
            complain(f"{self._folder} has no summary: the disk was full to the end", What.DISK)
            return 1
        if self._end is None:
            text = "left the run: another coordinator with this --run-dir goes on with it"
            complain(text, "handed over")
            return INTERRUPTED
        if self._end.code:
            hint = f"; go on with --resume {self._folder}" if self._population.kept else ""
            complain(f"run ended: {self._end.reason}{hint}", What.ENDED)
            return self._end.code
        self._observers.end(rundir.read_summary(self._folder))
        return 0

    def _summary(self) -> dict[str, Any]:
        return summarise(
            self._population, self._control_bytes, self._seed_bytes, self._rate_limits.refused
        )

    def _reserve_summary(self) -> None:
        """Reserve disk space for the summary before workers may leave."""
        links = len(self._population.members) ** 2
        if not self._summary_file.reserve(self._summary(), LINK_BYTES * links):
            self._membership.has_room = False
