"""What a worker tells its coordinator, and what it has heard from it. No I/O.

A subclass sends and receives the bytes. A coordinator that takes over the run is told what it may
have missed.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from washp2p.config.config import RunConfig
from washp2p.errors import (
    INTERRUPTED,
    DroppedError,
    JoinRefusedError,
    ProtocolError,
    RunStoppedError,
    UsageError,
    WashError,
)
from washp2p.protocol.messages.control import PROTOCOL, Message, messages
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.from_coordinator import (
    Discard,
    Dropped,
    Ping,
    Refuse,
    Resume,
    Stop,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    MILESTONES,
    Back,
    Busy,
    Claim,
    CutOff,
    Diverged,
    Hello,
    Leave,
    Progress,
    Rank,
    Saved,
)
from washp2p.protocol.patience import Patience
from washp2p.protocol.run_state import RunState
from washp2p.protocol.version import DERIVATION, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from washp2p.protocol.roster import MemberId, Order

_log = logging.getLogger("washp2p")

VOTES = (CutOff, Diverged)
"""Messages that count together with those of other members, and only in the same roster."""


class Conversation(ABC):
    """A worker's side of the messages between it and its coordinator.

    One thread may call `hear` and `what_may_be_missed`. Other threads may call `tell`.
    """

    address: str
    """Where the coordinator listens."""

    run: bytes
    """Eight bytes that name the run on the data plane."""

    name: str
    """The run's name for people and folders."""

    config: RunConfig
    """The run's whole configuration."""

    resumes: bool = False
    """Whether this member goes on from its checkpoint."""

    origin: bytes
    """Eight bytes that name the run's first life: what its files carry."""

    _welcome: Welcome | None = None
    _failure: WashError | None = None
    _last_progress = Progress(0)
    _last_saved: Saved | None = None
    _last_busy = Busy(0.0)

    def __init__(self, address: str, host: str, pid: int, place: str, rank: int | None) -> None:
        """The worker is process `pid` of `host`, at `place`, and wants the id `rank`, if given."""
        self.address = address
        self.place = place
        """Where this process runs. Peers at the same place can reach it without a network."""
        self._host, self._pid = host, pid
        self.state = RunState()
        """What the coordinator has said so far."""
        self.patience = Patience()
        """How long to wait for whom."""
        self._milestones: list[bytes] = []
        self._votes: list[tuple[int, bytes]] = []
        self._greeting = [
            messages.encode(Hello(PROTOCOL, DERIVATION, VERSION, host, pid)),
        ]
        if rank is not None:
            self._greeting.insert(0, messages.encode(Rank(rank)))

    @abstractmethod
    def _send(self, data: bytes) -> None:
        """Send a message. Does not block."""

    @abstractmethod
    def _answer(self, data: bytes) -> None:
        """Send a message from within `hear`."""

    @abstractmethod
    def _announce(self) -> None:
        """Tell whoever waits for a change to look again."""

    @abstractmethod
    def _open_folder(self, name: str) -> None:
        """Decide where the files of the run `name` lie. Raises UsageError."""

    @abstractmethod
    def _held(self, name: str, rounds: Sequence[int]) -> list[tuple[int, MemberId]]:
        """The checkpoints of these rounds on this host, as (round, member). Raises UsageError."""

    @abstractmethod
    def _forget(self, rounds: range) -> None:
        """Delete the checkpoints of these rounds."""

    @property
    def member(self) -> MemberId:
        """The member's id. New ids count from 0 in order of joining, unless workers ask for one."""
        return self.state.member

    def greet(self) -> None:
        """Say hello."""
        for data in self._greeting:
            self._send(data)

    def begin(self) -> None:
        """Take over what the Welcome says. Raises UsageError if its configuration is not valid."""
        assert self._welcome is not None
        welcome = self._welcome
        self.state.member = welcome.member
        self.run, self.origin, self.name = welcome.run, welcome.origin, welcome.name
        self.config = RunConfig.from_wire(welcome.config)
        self.resumes = welcome.resumes
        self.patience = Patience(self.config.operation.patience)

    def check(self) -> None:
        """Raise RunStoppedError, or the coordinator's refusal, if this member's run is over."""
        if self._failure is not None:
            raise self._failure

    def tell(self, message: Message) -> None:
        """Send a control `message` to the coordinator.

        Messages of the types in MILESTONES are sent again to a coordinator that takes over. So are
        messages of the types in VOTES, if no roster has come since, and the last Busy, unless its
        `seconds` are 0.
        """
        data = messages.encode(message)
        if isinstance(message, MILESTONES):
            self._milestones.append(data)
        elif isinstance(message, VOTES) and self.state.rosters:
            self._votes.append((self.state.roster.generation, data))
        elif isinstance(message, Busy):
            self._last_busy = message
        self._send(data)

    def order_of(self, round_number: int) -> Order | None:
        """The seed and roster of round `round_number`; None if the seed has not arrived."""
        return self.state.seeds.order_of(round_number, self.state.rosters)

    def reached(self, round_number: int) -> None:
        """Note that `round_number` begins. Deletes seeds up to it, and asks for more when due."""
        if self.state.seeds.reach(round_number):
            self.progress(round_number - 1)

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""
        self._last_progress = Progress(rounds)
        self.tell(self._last_progress)

    def saved(self, round_number: int, error: str) -> None:
        """Report that this member holds a checkpoint of `round_number`.

        If `error` is not empty, report that it holds none; `error` says why.
        """
        self.state.saved(round_number)
        self._last_saved = Saved(round_number, shortened(error))
        self.tell(self._last_saved)

    def tell_why(self, error: BaseException) -> None:
        """Tell the coordinator that this member leaves because of `error`."""
        if isinstance(error, KeyboardInterrupt):
            self.tell(Leave("it was interrupted", INTERRUPTED))
        else:
            code = getattr(error, "exit_code", 1)
            reason = shortened(str(error)) or type(error).__name__
            self.tell(Leave(reason, code if type(code) is int and code >= 0 else 1))

    def what_may_be_missed(self) -> Iterator[bytes]:
        """The messages to repeat to a coordinator that is back, since it may have missed them."""
        if self._welcome is None:
            yield from self._greeting
            return
        generations = self.state.rosters[-1].generation + 1 if self.state.rosters else 0
        yield messages.encode(Back(generations, self.state.seeds.until))
        yield from list(self._milestones)
        yield from (vote for of, vote in list(self._votes) if of == generations - 1)
        if self._last_saved is not None:
            yield messages.encode(self._last_saved)
        if self._last_busy.seconds:
            yield messages.encode(self._last_busy)
        yield messages.encode(self._last_progress)

    def hear(self, data: bytes) -> None:
        """Take a message of the coordinator. Logs and drops one that is malformed."""
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
            self._open_folder(message.name)
        except UsageError as error:
            self._fail(error)
        else:
            self._welcome = message

    def _claim(self, offer: Resume) -> None:
        """Tell a coordinator that resumes a run which of its checkpoints this host holds."""
        try:
            held = self._held(offer.name, offer.rounds)
        except UsageError as error:
            self._fail(error)
            return
        self._answer(messages.encode(Claim(self._host, self._pid, held)))

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
                self._forget(gone)
            if isinstance(message, Discard) and self._last_saved == Saved(message.round, ""):
                self._last_saved = None

    def _fail(self, error: WashError) -> None:
        """End this member's part, unless it has ended: `check` raises `error` from now on."""
        if self._failure is None and not self.state.over:
            self._failure = error
            self._announce()
