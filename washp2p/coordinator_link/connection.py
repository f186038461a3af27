"""A worker's end of the control plane: what it says, and what it has learnt.

Seeds, rosters, and word that the run has ended, arrive on the control socket's thread while the
member computes. A coordinator that takes the place of another is told what it may have missed.
Nothing here touches a parameter.
"""

from __future__ import annotations

import logging
import os
import socket as sockets
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig
from washp2p.coordinator_link.control_socket import ControlSocket
from washp2p.errors import (
    INTERRUPTED,
    DroppedError,
    JoinRefusedError,
    ProtocolError,
    RunStoppedError,
    UnreachableError,
    UsageError,
    WashError,
)
from washp2p.protocol.endpoints import split_tcp
from washp2p.protocol.messages.control import PROTOCOL, Message, messages
from washp2p.protocol.messages.fields import TEXT_LIMIT
from washp2p.protocol.messages.from_coordinator import (
    Checkpoint,
    Discard,
    Donor,
    Dropped,
    Evaluated,
    Finish,
    Guest,
    Kept,
    NewRoster,
    Refuse,
    Resume,
    Seeds,
    Settled,
    Stop,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Back,
    Busy,
    Claim,
    CutOff,
    Diverged,
    Finished,
    Hello,
    Leave,
    Metrics,
    NoSnapshots,
    Notice,
    Progress,
    Rank,
    Ready,
    Result,
    Saved,
    Stalled,
    Surveyed,
    Synced,
    Unusable,
    Vitals,
)
from washp2p.protocol.patience import Patience
from washp2p.protocol.roster import MemberId, Order, Peer, Roster
from washp2p.protocol.seed_window import Seedbook
from washp2p.protocol.version import DERIVATION, VERSION, installed
from washp2p.runfolder import checkpoints, rundir
from washp2p.transports.locality import this_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger
    from washp2p.sockets.keys import JoinKey

_log = logging.getLogger("washp2p")


class Connection:
    """A place in a run: who this member is, and the run's configuration.

    Made by `washp2p.connect`; hand it to `washp2p.join` together with a model built from `config`.
    Methods belong to one thread; none but `attach` blocks.
    """

    address: str
    """Where the coordinator listens."""

    member: MemberId
    """This member's id, from 0 on in order of joining."""

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

    rosters: list[Roster]
    """All that are known, by epoch; only added to."""

    settled: Settled | None = None
    """The last average that stands, once one does."""

    evaluated: int = 0
    """The last average of which some member has reported what evaluation found."""

    origin: bytes
    """Eight bytes that name the run's first life: what its files carry."""

    averages: int = 0
    """How many averages had been taken when this member came into the roster."""

    donor: Peer | None = None
    """Of a newcomer: whose snapshot to fetch."""

    _welcome: Welcome | None = None
    _failure: WashError | None = None
    _last_progress = Progress(0)
    _last_saved: Saved | None = None
    _finish = False

    def __init__(
        self,
        address: str,
        wait: float,
        run_dir: Path | None,
        keys: JoinKey | None = None,
        rank: int | None = None,
    ) -> None:
        """Say hello and wait for the answer. See `washp2p.connect`."""
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
        self._guests: deque[Peer] = deque()
        self.place = this_place()
        """Where this process runs, as its peers know it."""
        self.seeds = Seedbook()
        """Those that have arrived."""
        self._keys: dict[bytes, MemberId] = {}
        self._visitors: dict[bytes, MemberId] = {}
        self.encrypted = keys is not None
        """Whether links are, to the coordinator and among members."""
        self.patience = Patience()
        self.rosters = []
        self.changes = 0
        """Grows whenever a roster, a guest or a donor is new."""
        self._run_dir = run_dir
        self._checkpoints: set[int] = set()
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
            raise self._failure or _unanswered(address, wait, keys, unlike=self._socket.unlike)
        self.member = self._welcome.member
        self.run, self.origin = self._welcome.run, self._welcome.origin
        self.name = self._welcome.name
        try:
            self.config = RunConfig.from_wire(self._welcome.config)
        except UsageError as error:
            self.leave(error)
            raise
        self.resumes = self._welcome.resumes
        self.patience = self._socket.patience = Patience(self.config.patience)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on the control thread, whenever anything was learnt."""
        with self._changed:
            self._on_change = callback

    def on_stop(self, callback: Callable[[WashError], None]) -> None:
        """Have `callback` called when the run ends before its time.

        On the control thread and at once; the training thread learns of it in its next round.
        """
        with self._changed:
            self._on_stop = callback
            if self._failure is not None:
                callback(self._failure)

    def attach(  # noqa: PLR0917 - what a model and its place are
        self,
        layout: Layout,
        endpoint: str,
        near: Sequence[str],
        key: bytes,
        rounds: int,
        no_snapshots: str = "",
    ) -> None:
        """Present the model and wait until there is a roster with this member, or a `donor`.

        `layout` is the model's. The data plane listens at `endpoint`, and at `near`, the nearest
        first; it is known by the public `key` (32 bytes, none without encryption). `rounds` is how
        many rounds the run has, 0 if not known. `no_snapshots` says why the optimizer's state
        cannot be given to others. Blocks. Raises JoinRefusedError if the model does not fit the
        population's, RunStoppedError.
        """
        wire, where = layout.to_wire(), self.place
        self._reach(
            Attach(
                wire, endpoint, list(near), where, key, rounds, installed(), _short(no_snapshots)
            )
        )
        with self._changed:
            self._changed.wait_for(lambda: self.enrolled or self.donor or self._failure)
        self.check()

    @property
    def roster(self) -> Roster:
        """The newest."""
        return self.rosters[-1]

    @property
    def enrolled(self) -> bool:
        """Whether this member is in the newest roster."""
        return bool(self.rosters) and self.member in self.rosters[-1].members

    def member_of(self, key: bytes) -> MemberId | None:
        """Whose public `key` (32 bytes) it is, of the newest roster and who fetches a snapshot."""
        return self._keys.get(key)

    def take_guests(self) -> list[Peer]:
        """Newcomers that will ask for a snapshot, each told once."""
        return [self._guests.popleft() for _ in range(len(self._guests))]

    def check(self) -> None:
        """Raise RunStoppedError (or why the coordinator refused) if this member's run is over."""
        if self._failure is not None:
            raise self._failure

    def synced(self, epoch: int) -> None:
        """Report that this member holds the initial state of the first member of `epoch`.

        That is the number of a roster.
        """
        self._reach(Synced(epoch))

    def ready(self) -> None:
        """Report that this newcomer holds a snapshot."""
        self._reach(Ready())

    def averaging(self, number: int, round_number: int) -> None:
        """Report that average `number` begins here, after round `round_number`."""
        self._reach(Averaging(number, round_number))

    def averaged(self, epoch: int, number: int) -> None:
        """Report that this member holds average `number` over the members of `epoch`, a number."""
        self._reach(Averaged(epoch, number))

    def stalled(self, member: MemberId, *, broken: bool = False) -> None:
        """Report that this member has waited too long for the `member` of that number.

        Because it is slow, or the link to it is `broken`.
        """
        self._send(Stalled(member, broken))

    def unusable(self, member: MemberId, what: str) -> None:
        """Report that the snapshot of the `member` of that number is of no use: `what` it has."""
        self._send(Unusable(member, _short(what)))

    def no_snapshots(self, reason: str) -> None:
        """Report that the optimizer's state cannot be given to others, and the `reason`."""
        self._reach(NoSnapshots(_short(reason)))

    def busy(self, seconds: float) -> None:
        """Report that the loop does something else for at most `seconds`; 0: it goes on again."""
        self._send(Busy(seconds))

    def notice(self, topic: str, text: str) -> None:
        """Report what people should know, in a line of `text`; `topic` is one of a few words."""
        self._reach(Notice(topic, _short(text)))

    def diverged(self, member: MemberId) -> None:
        """Report that the `member` of that number sends values that are not finite."""
        self._send(Diverged(member))

    def cut_off(self, member: MemberId, what: str) -> None:
        """Report that this member takes nothing from the `member` of that number any more.

        `what` it has sent, in words.
        """
        self._send(CutOff(member, _short(what)))

    def order_of(self, round_number: int) -> Order | None:
        """What the plan of round `round_number` is derived from; None if its seed is not here."""
        return self.seeds.order_of(round_number, self.rosters)

    def reached(self, round_number: int) -> None:
        """Say that `round_number` begins: older seeds are let go, and more are asked for."""
        if self.seeds.reach(round_number):
            self.progress(round_number - 1)

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""
        self._last_progress = Progress(rounds)
        self._send(self._last_progress)

    def checkpoint_from(self, round_number: int) -> int | None:
        """The first round from `round_number` on of which a checkpoint is due, if any is known."""
        return min((due for due in tuple(self._checkpoints) if due >= round_number), default=None)

    def saved(self, round_number: int, error: str) -> None:
        """Report that this member holds a checkpoint of `round_number`; or not, due to `error`."""
        for due in tuple(self._checkpoints):
            if due <= round_number:
                self._checkpoints.discard(due)
        self._last_saved = Saved(round_number, _short(error))
        self._send(self._last_saved)

    def metrics(self, values: dict[str, Any]) -> None:
        """Report one line of metrics.jsonl: plain `values` only, by name."""
        self._send(Metrics(values))

    def surveyed(self, found: Surveyed) -> None:
        """Report what this member has `found` in a survey, as the message says."""
        self._send(found)

    def vitals(self, vitals: Vitals) -> None:
        """Report how it goes, by `vitals`: a member does every second or so."""
        self._send(vitals)

    def result(self, result: Result) -> None:
        """Report what evaluation found, for summary.json: `result` is in per cent."""
        self._reach(result)

    def finished(self, message: Finished) -> None:
        """Report that this member has all it needs, by a `message` that says what it did."""
        self._reach(message)

    def accounts(self, ledger: Ledger) -> None:
        """Report what this member has sent, by its `ledger`, once `over`."""
        self._reach(Accounts(ledger.to_wire()))

    @property
    def over(self) -> bool:
        """Whether the coordinator has said that all are finished."""
        return self._finish

    def leave(self, error: BaseException) -> None:
        """Go before the end because of `error`. The run's other members learn why."""
        if isinstance(error, KeyboardInterrupt):
            self._send(Leave("it was interrupted", INTERRUPTED))
        else:
            code = getattr(error, "exit_code", 1)
            reason = _short(str(error)) or type(error).__name__
            self._send(Leave(reason, code if type(code) is int and code >= 0 else 1))
        self.close()

    def close(self) -> None:
        """Let go of the control plane; what was sent still leaves. Harmless when called twice."""
        self._socket.close()

    def _send(self, message: Message) -> None:
        self._socket.send(messages.encode(message))

    def _reach(self, milestone: Message) -> None:
        """Send what a coordinator that comes back must hear again."""
        data = messages.encode(milestone)
        self._milestones.append(data)
        self._socket.send(data)

    def _returned(self) -> Iterator[bytes]:
        """There is a coordinator again: say what it may not know, ask for what it has said."""
        if self._welcome is None:
            yield from self._greeting
            return
        epochs = self.rosters[-1].epoch + 1 if self.rosters else 0
        yield messages.encode(Back(epochs, self.seeds.until))
        yield from list(self._milestones)
        if self._last_saved is not None:
            yield messages.encode(self._last_saved)
        yield messages.encode(self._last_progress)

    def _folder_of(self, name: str) -> Path:
        return self._run_dir or Path("runs") / rundir.check_name(name)

    def _claim(self, offer: Resume) -> None:
        """The run goes on from a checkpoint: say which of them are here."""
        try:
            held = checkpoints.held(self._folder_of(offer.name), offer.rounds)
        except UsageError as error:
            self._fail(error)
            return
        self._socket.answer(messages.encode(Claim(sockets.gethostname(), os.getpid(), held)))

    def _receive(self, data: bytes) -> None:  # noqa: PLR0912 - a case a message
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
            case Checkpoint(number):
                if number > self.seeds.reached:
                    self._checkpoints.add(number)
            case Kept(number):
                checkpoints.forget(self.folder, range(number))
            case Discard(number):
                self._checkpoints.discard(number)
                checkpoints.forget(self.folder, range(number, number + 1))
            case NewRoster(epoch, first, averages, peers):
                if not self.rosters or epoch > self.rosters[-1].epoch:
                    if not self.enrolled:
                        self.averages = averages
                    self._take_roster(Roster.from_rows(epoch, first, peers))
            case Seeds():
                self._take_seeds(message)
            case Guest(row):
                self._guests.append(self._admit(Peer.from_row(row)))
                self.changes += 1
            case Donor(row):
                self.donor = self._admit(Peer.from_row(row))
                self.changes += 1
            case Settled():
                if self.settled is None or message.number >= self.settled.number:
                    self.settled = message
            case Evaluated(number):
                self.evaluated = max(self.evaluated, number)
            case Finish():
                self._finish = True
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
                return
        self._announce()

    def _take_welcome(self, message: Welcome) -> None:
        try:
            self.folder = self._folder_of(message.name)
        except UsageError as error:
            self._fail(error)
        else:
            self._welcome = message

    def _take_roster(self, roster: Roster) -> None:
        its = {peer.key: peer.member for peer in roster.peers}
        self._visitors = {k: m for k, m in self._visitors.items() if k not in its}
        self._keys = its | self._visitors
        self.rosters.append(roster)
        self.changes += 1

    def _admit(self, visitor: Peer) -> Peer:
        """Somebody who is not in the roster that is known here: a guest, or a donor."""
        self._visitors = {**self._visitors, visitor.key: visitor.member}
        self._keys = {**self._keys, visitor.key: visitor.member}
        return visitor

    def _take_seeds(self, message: Seeds) -> None:
        """Seeds for a roster that this member does not have end its run."""
        try:
            self.seeds.take(message, self.rosters)
        except ProtocolError as error:
            self._fail(
                ProtocolError(
                    f"the coordinator at {self.address} sent {error}; restart the run, and report "
                    "this"
                )
            )

    def _fail(self, error: WashError) -> None:
        if self._failure is None and not self._finish:
            with self._changed:
                self._failure = error
                self._on_stop(error)
            self._announce()

    def _announce(self) -> None:
        with self._changed:
            self._changed.notify_all()
            self._on_change()


def _short(text: str) -> str:
    return text[:TEXT_LIMIT]


def _unanswered(
    address: str, wait: float, keys: JoinKey | None, *, unlike: bool
) -> UnreachableError:
    """Why a coordinator may have kept silent."""
    if not unlike:
        remedy = "start one there (python -m coordinator --n N) or correct the address"
    elif keys is None:
        remedy = "somebody is there, and wants keys: give --keys (from Python, keys=)"
    else:
        remedy = "somebody is there, without keys or with others: give both the same --keys"
    return UnreachableError(f"no coordinator answered at {address} within {wait:g} s; {remedy}")
