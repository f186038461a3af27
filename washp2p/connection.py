"""A worker's end of the control plane: a background thread and what it has learnt.

The thread owns the control socket, so that seeds, and word that the run has ended, arrive while the
member computes. It touches no parameter.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from washp2p.config import RunConfig
from washp2p.control import (
    PROTOCOL,
    Accounts,
    Attach,
    Finish,
    Finished,
    Hello,
    Leave,
    Message,
    Metrics,
    NewRoster,
    Progress,
    Refuse,
    Result,
    Seeds,
    Stop,
    Synced,
    Welcome,
    messages,
)
from washp2p.endpoints import split_tcp
from washp2p.errors import (
    INTERRUPTED,
    JoinRefusedError,
    ProtocolError,
    RunStoppedError,
    UnreachableError,
    UsageError,
    WashError,
)
from washp2p.liveness import FAREWELL_MS, watch
from washp2p.rounds import MemberId, Peer, Roster, unpack_seeds
from washp2p.version import DERIVATION, VERSION, installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.layout import Layout
    from washp2p.ledger import Ledger


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

    def __init__(self, address: str, wait: float) -> None:
        """Say hello and wait for the answer. See `washp2p.connect`."""
        host, port = split_tcp(address)
        if host == "*" or port in {"*", "0"}:
            raise UsageError(f"{address} is not one coordinator's address; name its host and port")
        self.address = address
        self._changed = threading.Condition()
        self._on_change: Callable[[], None] = lambda: None
        self._on_stop: Callable[[WashError], None] = lambda _: None
        self._welcome: Welcome | None = None
        self._roster: Roster | None = None
        self._failure: WashError | None = None
        self._finish = False
        self._closing = False
        self._seeds: dict[int, int] = {}
        self._window = 1
        self._reached = 0
        self._progress_due = 0
        self._context = zmq.Context()
        self._context.set(zmq.BLOCKY, 0)  # no socket lingers unless it is told to
        inner = self._context.socket(zmq.PAIR)
        inner.bind("inproc://outbox")
        self._outbox = self._context.socket(zmq.PAIR)
        self._outbox.connect("inproc://outbox")
        self._thread = threading.Thread(
            target=self._serve, args=(inner,), name="washp2p control", daemon=True
        )
        self._thread.start()
        try:
            self._send(Hello(PROTOCOL, DERIVATION, VERSION, sockets.gethostname(), os.getpid()))
            with self._changed:
                self._changed.wait_for(lambda: self._welcome or self._failure, wait)
        except BaseException:
            self.close()
            raise
        if self._welcome is None:
            self.close()
            raise self._failure or UnreachableError(
                f"no coordinator answered at {address} within {wait:g} s; start one there "
                "(python -m coordinator --n N) or correct the address"
            )
        self.member = self._welcome.member
        self.run = self._welcome.run
        self.name = self._welcome.name
        try:
            self.config = RunConfig.from_wire(self._welcome.config)
        except UsageError as error:
            self.leave(error)
            raise

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

    def attach(self, layout: Layout, endpoint: str, rounds: int) -> Roster:
        """Present the model and wait until the population is complete; return its roster.

        Raises JoinRefusedError if the model does not fit the population's, RunStoppedError.
        """
        self._send(Attach(layout.to_wire(), endpoint, rounds, installed()))
        with self._changed:
            self._changed.wait_for(lambda: self._roster or self._failure)
        self.check()
        assert self._roster is not None
        return self._roster

    def check(self) -> None:
        """Raise RunStoppedError (or why the coordinator refused) if this member's run is over."""
        if self._failure is not None:
            raise self._failure

    def synced(self) -> None:
        """Report that this member holds the initial state."""
        self._send(Synced())

    def has_seed(self, round_number: int) -> bool:
        """Whether the seed of a round has arrived."""
        return round_number in self._seeds

    def seed_of(self, round_number: int) -> int | None:
        """The seed of a round, or None if it has not arrived."""
        return self._seeds.get(round_number)

    def reached(self, round_number: int) -> None:
        """Say that a round begins: its seed and older ones are let go, and more are asked for."""
        for number in range(self._reached + 1, round_number + 1):
            self._seeds.pop(number, None)
        self._reached = round_number
        if round_number >= self._progress_due:
            self.progress(round_number - 1)
            self._progress_due = round_number + max(1, self._window // 2)

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""
        self._send(Progress(rounds))

    def metrics(self, values: dict[str, Any]) -> None:
        """Report one line of metrics.jsonl; plain values only."""
        self._send(Metrics(values))

    def result(self, values: dict[str, Any]) -> None:
        """Report what evaluation found, for summary.json."""
        self._send(Result(values))

    def finished(self, message: Finished) -> None:
        """Report that this member has all it needs."""
        self._send(message)

    def accounts(self, ledger: Ledger) -> None:
        """Report what this member has sent, once `over`."""
        self._send(Accounts(ledger.to_wire()))

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
            reason = str(error) or type(error).__name__
            self._send(Leave(reason, code if isinstance(code, int) else 1))
        self.close()

    def close(self) -> None:
        """Let go of the control plane; what was sent still leaves. Harmless when called twice."""
        if self._closing:
            return
        self._closing = True
        self._outbox.send(b"")
        self._thread.join()
        self._outbox.close(linger=0)
        self._context.term()

    def _send(self, message: Message) -> None:
        self._outbox.send(messages.encode(message))

    def _serve(self, inner: zmq.Socket[bytes]) -> None:
        dealer = self._context.socket(zmq.DEALER)
        dealer.set(zmq.IPV6, "[" in self.address)
        watch(dealer)
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            try:
                dealer.connect(self.address)
            except zmq.ZMQError as error:
                self._fail(UsageError(f"cannot connect to {self.address}: {error.strerror}"))
                while inner.recv():
                    pass
            else:
                self._relay(inner, dealer, monitor)
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)
            inner.close(linger=0)
            dealer.close(linger=FAREWELL_MS)

    def _relay(
        self, inner: zmq.Socket[bytes], dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes]
    ) -> None:
        """Pass messages on in both directions until this member closes."""
        poller = zmq.Poller()
        for socket in (inner, dealer, monitor):
            poller.register(socket, zmq.POLLIN)
        lost = False
        while True:
            ready = dict(poller.poll())
            if inner in ready:
                data = inner.recv()
                if not data:
                    return
                dealer.send(data)
            if dealer in ready:
                self._receive(dealer.recv())
            elif monitor in ready:
                recv_monitor_message(monitor)
                lost = self._welcome is not None
            if lost and not dealer.poll(0):
                self._fail(
                    RunStoppedError(
                        f"the coordinator at {self.address} is gone; what this member has "
                        "written is kept: start the run again"
                    )
                )

    def _receive(self, data: bytes) -> None:
        try:
            message = messages.decode(data)
        except ProtocolError as error:
            self._fail(ProtocolError(f"from the coordinator at {self.address}: {error}"))
            return
        match message:
            case Welcome():
                self._welcome = message
            case NewRoster(epoch, peers):
                self._roster = Roster(
                    epoch=epoch,
                    peers=tuple(Peer(member=m, endpoint=e, host=h) for m, e, h in peers),
                )
            case Seeds(roster=digest) if self._roster is None or digest != self._roster.digest():
                self._fail(
                    ProtocolError(
                        f"the coordinator at {self.address} sent seeds for another roster; "
                        "restart the run, and report this"
                    )
                )
                return
            case Seeds(first=first, seeds=packed):
                seeds = unpack_seeds(packed)
                self._window = len(seeds)
                self._seeds.update(enumerate(seeds, start=first))
            case Finish():
                self._finish = True
            case Refuse(reason):
                self._fail(JoinRefusedError(reason))
                return
            case Stop(reason, code):
                self._fail(RunStoppedError(reason, code))
                return
            case _:
                return
        self._announce()

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
