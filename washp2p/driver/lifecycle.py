"""The lifecycle of a member in this process: it begins, trains with its peers, and ends.

This is the driver of the member's core. It receives messages, has the clock, and runs the core's
procedures on the training thread. The core decides what is to be done.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from washp2p.driver.grad_scaler import Attempts
from washp2p.errors import RunStoppedError, UsageError, WashError
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.from_worker import Attach
from washp2p.protocol.version import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

    from washp2p.driver.assembly import Surroundings
    from washp2p.driver.replicas import Replicas
    from washp2p.member.core import Final, MemberCore
    from washp2p.member.peer_average import PeerAverage
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.waiting import Procedure, Wait
    from washp2p.transports.base import Message

    R = TypeVar("R")

AT_ONCE = 10_000
"""The most messages handled before a round begins; others that have arrived wait."""


class Lifecycle:
    """The lifecycle of one member: its `core`, and what surrounds it here."""

    def __init__(self, core: MemberCore, surroundings: Surroundings) -> None:
        self.core = core
        self.around = surroundings
        self.face: object = None
        """The Member that the loop holds. It lives while the optimizer's hook holds this object."""
        self.closed = False
        """Whether the member's part in the run is over."""
        self._inbox = core.parts.inbox
        self._transport = surroundings.transport
        self._why: BaseException | None = None
        self._replicas: Replicas | None = None
        self._hook: RemovableHandle | None = None
        self._attempts: Attempts | None = None

    def begin(self) -> None:
        """Wait for the population, take over its state, hook into the optimizer.

        Blocks. Raises as `join`.
        """
        around, connection = self.around, self.around.connection
        store, choices = self.core.parts.store, around.choices
        connection.on_change(self._transport.interrupt)
        attach = Attach(
            store.layout.to_wire(),
            around.endpoint,
            list(self._transport.near),
            connection.place,
            around.key,
            choices.rounds,
            installed(),
            shortened(self.core.parts.advice.no_snapshots),
        )
        self.run(self.core.begin(attach))
        self._hook = around.optimizer.register_step_post_hook(lambda *_: self._round())
        if choices.scaler is not None:
            self._attempts = Attempts(choices.scaler, around.optimizer, self._round)

    def replicate(self, replicas: Replicas) -> None:
        """Let the other ranks of the model's DistributedDataParallel group follow this member.

        `replicas` reaches those ranks. Call this before the first step. Raises UsageError under
        `--repair`.
        """
        around, connection = self.around, self.around.connection
        if connection.config.method.repair:
            raise UsageError("--repair is for members on one device; leave it out")
        self._replicas = replicas
        with self._replicas_told():
            told = {
                "config": connection.config.to_wire(),
                "member": connection.member,
                "members": self.core.members,
                "last": around.last,
                "buffers": dict(around.choices.buffers),
            }
            replicas.start(told, self.core.parts.store, self.core.snapshot)

    def run(self, procedure: Procedure[R]) -> R:
        """Run a procedure of the core to its end, and return its result. Blocks.

        If waiting fails, the error, such as RunStoppedError or an interrupt, is raised within the
        procedure.
        """
        try:
            wait = next(procedure)
            while True:
                try:
                    self._wait(wait)
                except BaseException as error:
                    wait = procedure.throw(error)
                else:
                    wait = next(procedure)
        except StopIteration as end:
            result: R = end.value
            return result

    def average(self, final: Final | None) -> PeerAverage:
        """Return the last average if it holds for `final`; else take a new one. Blocks."""
        self.require_open()
        averages = self.core.parts.averages
        if not averages.begun or averages.stands:
            self._begin_average(final)
        return self._take_average()

    def final(self) -> PeerAverage:
        """Return the last average, or take the first one. Blocks.

        Raises UsageError if training has gone on since the last average.
        """
        self.require_open()
        averages = self.core.parts.averages
        if not averages.begun:
            if averages.current is not None:
                raise UsageError(
                    "training has gone on since the last average, and what members had then is no "
                    "longer served; call average() first, as all members do"
                )
            self._begin_average(None)
        return self._take_average()

    def finish(self) -> None:
        """Finish the run together with all others. Blocks."""
        if not self.core.parts.averages.begun:
            self._begin_average(None)
        self._take_average()
        if self._replicas is not None:
            self._replicas.end(early=False)
        self.run(self.core.finish())

    def finish_alone(self) -> None:
        """If the last average still holds, finish the run without waiting for the other members.

        Used when the process exits and `close` was not called.
        """
        if self.core.parts.averages.stands and not self.closed:
            self.core.finish_alone()
            self.end(None)

    def leave(self) -> None:
        """Leave the run alone; the others go on."""
        self.end(RunStoppedError("it has left by itself"))

    def end(self, error: BaseException | None) -> None:
        """End this member's part in the run. The others are told `error`, if there is one."""
        if self.closed:
            return
        self.closed, self._why = True, error
        around = self.around
        for attached in (self._hook, self._attempts):
            if attached is not None:
                attached.remove()
        self.core.parts.advice.close()
        around.planner.close()
        around.outbox.close()
        if error is None:
            around.connection.close()
        else:
            around.connection.leave(error)
        self._transport.close(linger=0.0 if error else 1.0)
        if around.log is not None:
            around.log.close()
        self.core.parts.store.release()

    def require_open(self) -> None:
        """Raise the error that ended this member's part in the run, if it has ended."""
        if not self.closed:
            return
        if isinstance(self._why, WashError):
            raise type(self._why)(str(self._why)) from None
        why = f" because of {self._why!r:.100}" if self._why is not None else ""
        member: MemberId = self.around.connection.member
        raise RunStoppedError(f"member {member} has left the run{why}; join again to train on")

    def serve(self, seconds: float) -> None:
        """Only serve peers for `seconds`. Blocks. Raises RunStoppedError."""
        self.run(self.core.serve_until(time.monotonic() + seconds))

    def _round(self) -> None:
        """Run the round that follows an optimizer step.

        A RunStoppedError ends this member's part in the run. The process may then join again.
        """
        try:
            with self._replicas_told():
                self._inbox.take_all(self._arrived())
                self.run(self.core.round())
                if self._replicas is not None:
                    parts = self.core.parts
                    self._replicas.after_round(parts.round_loop.round, parts.store)
        except RunStoppedError as error:
            self.end(error)
            raise

    def _begin_average(self, final: Final | None) -> None:
        with self._replicas_told():
            begun = self.run(self.core.begin_average(final))
            if begun and self._replicas is not None:
                self._replicas.pause(self.core.parts.round_loop.round, self.core.parts.store)

    def _take_average(self) -> PeerAverage:
        if self.core.parts.averages.stands or self._replicas is None:
            return self.run(self.core.take_average())
        with self._replicas.waiting():
            average = self.run(self.core.take_average())
        self._replicas.share_average(average.averaged, self.core.members)
        return average

    def _arrived(self) -> Iterator[Message]:
        for _ in range(AT_ONCE):
            if (message := self._transport.receive(0)) is None:
                return
            yield message

    def _wait(self, wait: Wait) -> None:
        """Hand arriving messages to the inbox until `wait` is over."""
        ping = self.around.connection.patience.ping
        waiting = self._inbox.begin(wait)
        while not self._inbox.is_over(waiting):
            left = wait.deadline - time.monotonic()
            message: Message | None = self._transport.receive(max(0.0, min(ping, left)))
            if message is None:
                self._inbox.tick(waiting)  # whatever the coordinator says interrupts `receive`
            else:
                self._inbox.take(message)

    @contextmanager
    def _replicas_told(self) -> Iterator[None]:
        """Run a block. If it raises, tell the replicas that the member has ended, because they
        wait for it.
        """
        try:
            yield
        except BaseException:
            if self._replicas is not None:
                self._replicas.end(early=True)
            raise
