"""A worker's connection to the coordinator: what it tells, and what it has heard.

Messages arrive on the control socket's thread while the member computes. If another coordinator
takes over the run, it is told what it may have missed. Nothing here touches a parameter.
"""

from __future__ import annotations

import logging
import os
import socket as sockets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.config.config import RunConfig
from washp2p.coordinator_link.control_socket import ControlSocket, unanswered
from washp2p.errors import (
    INTERRUPTED,
    DroppedError,
    JoinRefusedError,
    ProtocolError,
    RunStoppedError,
    UsageError,
    WashError,
)
from washp2p.protocol.endpoints import split_tcp
from washp2p.protocol.messages.control import PROTOCOL, Message, messages
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.from_coordinator import (
    Dropped,
    Ping,
    Refuse,
    Resume,
    Stop,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Back,
    Claim,
    Finished,
    Hello,
    Leave,
    NoSnapshots,
    Notice,
    Progress,
    Rank,
    Ready,
    Result,
    Saved,
    Synced,
)
from washp2p.protocol.patience import Patience
from washp2p.protocol.run_state import RunState
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.runfolder import checkpoints, rundir
from washp2p.transports.locality import this_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from washp2p.protocol.roster import MemberId, Order
    from washp2p.sockets.keys import JoinKey

_log = logging.getLogger("washp2p")

MILESTONES = (
    Accounts, Attach, Averaged, Averaging, Finished, NoSnapshots, Notice, Ready, Result, Synced
)  # fmt: skip


class Connection:
    """A place in a run: the member's id, and the run's configuration.

    Made by `washp2p.connect`. Pass it to `washp2p.join` together with a model built from `config`.
    Methods belong to one thread; none blocks.
    """

    address: str
    """Where the coordinator listens."""

    run: bytes
    """Eight bytes that name the run on the data plane."""

    name: str
    """The run's name for people and folders."""

    config: RunConfig
    """The run's whole configuration."""

    folder: Path
    """Where this host keeps what it writes of the run."""

    resumes: bool = False
    """Whether this member goes on from its checkpoint."""

    patience: Patience
    """How long to wait for whom."""

    origin: bytes
    """Eight bytes that name the run's first life: what its files carry."""

    _welcome: Welcome | None = None
    _failure: WashError | None = None
    _last_progress = Progress(0)
    _last_saved: Saved | None = None

    def __init__(
        self,
        address: str,
        wait: float,
        run_dir: Path | None,
        keys: JoinKey | None = None,
        rank: int | None = None,
    ) -> None:
        """Say hello and wait for the answer; arguments are as in `washp2p.connect`."""
        host, port = split_tcp(address)
        if host == "*" or port in {"*", "0"}:
            raise UsageError(f"{address} is not one coordinator's address; name its host and port")
        self.address = address
        self._changed = threading.Condition()
        self._on_change: Callable[[], None] = lambda: None
        self._on_stop: Callable[[WashError], None] = lambda _: None
        hello = Hello(PROTOCOL, DERIVATION, VERSION, sockets.gethostname(), os.getpid())
        self._greeting = [messages.encode(hello)]
        if rank is not None:
            self._greeting.insert(0, messages.encode(Rank(rank)))
        self._milestones: list[bytes] = []
        self.place = this_place()
        """Where this process runs, as its peers know it."""
        self.state = RunState()
        """What the coordinator has said so far."""
        self.encrypted = keys is not None
        """Whether links are, to the coordinator and among members."""
        self.patience = Patience()
        self._run_dir = run_dir
        self._socket = ControlSocket(
            address,
            keys,
            receive=self._receive,
            returned=self._returned,
            failed=self._fail,
        )
        try:
            for data in self._greeting:
                self._socket.send(data)
            with self._changed:
                self._changed.wait_for(lambda: self._welcome or self._failure, wait)
        except BaseException:
            self.close()
            raise
        if self._welcome is None:
            self.close()
            raise self._failure or unanswered(address, wait, keys, unlike=self._socket.unlike)
        self.state.member = self._welcome.member
        self.run, self.origin = self._welcome.run, self._welcome.origin
        self.name = self._welcome.name
        try:
            self.config = RunConfig.from_wire(self._welcome.config)
        except UsageError as error:
            self.leave(error)
            raise
        self.resumes = self._welcome.resumes
        self.patience = self._socket.patience = Patience(self.config.operation.patience)

    @property
    def member(self) -> MemberId:
        """The member's id, from 0 on in order of joining."""
        return self.state.member

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback`, on the control thread, whenever a message has arrived."""
        with self._changed:
            self._on_change = callback

    def on_stop(self, callback: Callable[[WashError], None]) -> None:
        """Call `callback` on the control thread as soon as the run ends early.

        The training thread learns of it in its next round.
        """
        with self._changed:
            self._on_stop, failure = callback, self._failure
        if failure is not None:
            callback(failure)

    def check(self) -> None:
        """Raise RunStoppedError, or the coordinator's refusal, if this member's run is over."""
        if self._failure is not None:
            raise self._failure

    def tell(self, message: Message) -> None:
        """Send a control `message` to the coordinator.

        Messages of the types in MILESTONES are sent again to a coordinator that takes over.
        """
        data = messages.encode(message)
        if isinstance(message, MILESTONES):
            self._milestones.append(data)
        self._socket.send(data)

    def order_of(self, round_number: int) -> Order | None:
        """The seed and roster of round `round_number`; None if the seed has not arrived."""
        return self.state.seeds.order_of(round_number, self.state.rosters)

    def reached(self, round_number: int) -> None:
        """Note that `round_number` begins. Older seeds are deleted, and more are asked for."""
        if self.state.seeds.reach(round_number):
            self.progress(round_number - 1)

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""
        self._last_progress = Progress(rounds)
        self.tell(self._last_progress)

    def saved(self, round_number: int, error: str) -> None:
        """Report a checkpoint of `round_number`: held if `error` is empty, else why it is not."""
        self.state.saved(round_number)
        self._last_saved = Saved(round_number, shortened(error))
        self.tell(self._last_saved)

    def leave(self, error: BaseException) -> None:
        """Leave the run early because of `error`. The other members are told."""
        if isinstance(error, KeyboardInterrupt):
            self.tell(Leave("it was interrupted", INTERRUPTED))
        else:
            code = getattr(error, "exit_code", 1)
            reason = shortened(str(error)) or type(error).__name__
            self.tell(Leave(reason, code if type(code) is int and code >= 0 else 1))
        self.close()

    def close(self) -> None:
        """Close the connection. Sent messages still leave. Harmless when called twice."""
        self._socket.close()

    def _returned(self) -> Iterator[bytes]:
        """The messages to repeat to a coordinator that is back, since it may have missed them."""
        if self._welcome is None:
            yield from self._greeting
            return
        generations = self.state.rosters[-1].generation + 1 if self.state.rosters else 0
        yield messages.encode(Back(generations, self.state.seeds.until))
        yield from list(self._milestones)
        if self._last_saved is not None:
            yield messages.encode(self._last_saved)
        yield messages.encode(self._last_progress)

    def _folder_of(self, name: str) -> Path:
        return self._run_dir or Path("runs") / rundir.check_name(name)

    def _claim(self, offer: Resume) -> None:
        """Tell a coordinator that resumes a run which of its checkpoints this host holds."""
        try:
            held = checkpoints.held(self._folder_of(offer.name), offer.rounds)
        except UsageError as error:
            self._fail(error)
            return
        self._socket.answer(messages.encode(Claim(sockets.gethostname(), os.getpid(), held)))

    def _receive(self, data: bytes) -> None:
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            _log.warning("refused a message from the coordinator at %s: %s", self.address, error)
            return
        match message:
            case Welcome():
                self._take_welcome(message)
            case Resume():
                self._claim(message)
            case Ping():
                return
            case Refuse(reason):
                self._fail(JoinRefusedError(reason))
                return
            case Dropped(reason):
                self._fail(DroppedError(f"the coordinator has dropped this member: {reason}"))
                return
            case Stop(reason, code):
                self._fail(RunStoppedError(reason, code))
                return
            case _:
                self._learn(message)
        self._announce()

    def _take_welcome(self, message: Welcome) -> None:
        try:
            self.folder = self._folder_of(message.name)
        except UsageError as error:
            self._fail(error)
        else:
            self._welcome = message

    def _learn(self, message: Message) -> None:
        try:
            gone = self.state.take(message)
        except ProtocolError as error:
            self._fail(
                ProtocolError(
                    f"the coordinator at {self.address} sent {error}; restart the run, and report "
                    "this"
                )
            )
        else:
            if gone:
                checkpoints.forget(self.folder, gone)

    def _fail(self, error: WashError) -> None:
        with self._changed:
            if self._failure is not None or self.state.over:
                return
            self._failure, on_stop = error, self._on_stop
        on_stop(error)
        self._announce()

    def _announce(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._on_change()
