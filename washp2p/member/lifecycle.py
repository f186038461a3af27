"""The lifecycle of a member: it begins, takes part in rounds and averages, and ends.

All of this runs on the training thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from washp2p.errors import RunStoppedError, UsageError, WashError
from washp2p.member.accounting import finished, vitals_of
from washp2p.member.grad_scaler import Attempts
from washp2p.model.digests import all_finite
from washp2p.model.snapshot import Snapshot
from washp2p.protocol.messages.from_worker import Accounts
from washp2p.rounds import hold_points
from washp2p.rounds.round_loop import Start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch.utils.hooks import RemovableHandle

    from washp2p.member.assembly import Parts
    from washp2p.member.peer_average import PeerAverage
    from washp2p.member.replicas import Replicas
    from washp2p.protocol.messages.from_worker import Vitals
    from washp2p.protocol.roster import MemberId

    State = dict[str, Any]
    Final = Callable[[], "State | None"] | Mapping[str, Any]

FEW = 32
"""Members of whom each may tell every second how it goes."""


class Lifecycle:
    """The lifecycle of one member, made of `parts`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.face: object = None
        """The Member that the loop holds. The optimizer's hook keeps it alive, and so this."""
        self.closed = False
        """Whether its part in the run is over."""
        self.vitals: Vitals | None = None
        """What it last said of how it goes, as it does every second; not to be changed."""
        self._why: BaseException | None = None
        self._replicas: Replicas | None = None
        self._hook: RemovableHandle | None = None
        self._attempts: Attempts | None = None
        self._told_at = 0.0
        self._accounted = False

    @property
    def members(self) -> tuple[MemberId, ...]:
        """The members of the newest roster, in order; after an average, those averaged over."""
        averages = self.parts.averages
        over = averages.current.over if averages.current is not None and averages.stands else None
        return (over or self.parts.connection.state.roster).members

    def begin(self) -> None:
        """Wait for the population, take over its state, hook into the optimizer.

        Blocks. Raises as `join`.
        """
        parts, connection = self.parts, self.parts.connection
        rounds, scaler = parts.choices.rounds, parts.choices.scaler
        parts.strategy.begin(rounds)
        connection.on_change(parts.transport.interrupt)
        hold_points.reach(hold_points.JOINING)
        connection.attach(
            parts.store.layout,
            parts.endpoint,
            parts.transport.near,
            parts.key,
            rounds,
            parts.advice.no_snapshots,
        )
        if connection.resumes:
            start = parts.checkpointing.go_on()
            parts.startup.go_on_together(start, rounds=rounds)
            parts.checkpointing.forget_what_was_to_come(start)
            parts.timeline.begin(start)
        elif connection.state.enrolled:
            parts.startup.start_together()
            parts.timeline.begin(Start())
        else:
            joined = parts.startup.come_in()
            parts.timeline.begin(Start(round=joined.round), joined)
        parts.averages.taken = connection.state.averages
        parts.exchange.arrivals.go_on(connection.state.averages)
        parts.advice.begin(parts.slots)
        self._hook = parts.optimizer.register_step_post_hook(lambda *_: self._round())
        if scaler is not None:
            self._attempts = Attempts(scaler, parts.optimizer, self._round)

    def replicate(self, replicas: Replicas) -> None:
        """Let the other ranks of the model's DistributedDataParallel group follow this member.

        `replicas` reaches those ranks. Call this before the first step. Raises UsageError under
        `--repair`.
        """
        parts = self.parts
        if parts.repairer is not None:
            raise UsageError("--repair is for members on one device; leave it out")
        self._replicas = replicas
        with self._replicas_told():
            told = {
                "config": parts.connection.config.to_wire(),
                "member": parts.connection.member,
                "members": self.members,
                "last": parts.last,
                "buffers": dict(parts.choices.buffers),
            }
            replicas.start(told, parts.store, self._snapshot)

    def average(self, final: Final | None) -> PeerAverage:
        """Return the last average if it holds for `final`; else take a new one. Blocks."""
        self.require_open()
        averages = self.parts.averages
        if not averages.begun or averages.stands:
            self._begin_average(final)
        return self._take_average()

    def final(self) -> PeerAverage:
        """Return the last average, or take the first one. Blocks.

        Raises UsageError if training has gone on since the last average.
        """
        self.require_open()
        averages = self.parts.averages
        if not averages.begun:
            if averages.current is not None:
                raise UsageError(
                    "training has gone on since the last average, and what members had then is no "
                    "longer served; call average() first, as all members do"
                )
            self._begin_average(None)
        return self._take_average()

    def _take_average(self) -> PeerAverage:
        averages = self.parts.averages
        if averages.stands or self._replicas is None:
            return averages.take()
        with self._replicas.waiting():
            average = averages.take()
        self._replicas.share_average(average.averaged, self.members)
        return average

    def _begin_average(self, final: Final | None) -> None:
        """Begin the next average, unless the last one holds and is of the same values."""
        averages, timeline = self.parts.averages, self.parts.timeline
        number, stands = averages.taken + 1, averages.stands
        with self._replicas_told():
            if not stands:
                timeline.pause(number)
                self.parts.advice.before_average()
            state, values = self._values_for(final)
            if stands:
                if averages.is_of(values):
                    return
                timeline.pause(number)
            if self._replicas is not None:
                self._replicas.pause(timeline.round, self.parts.store)
        averages.begin(values, timeline.round, by_hand=state is not None)

    def _values_for(self, final: Final | None) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the caller's state dict, or None without one, and the values to average.

        Raises RunStoppedError if not all trained values are finite.
        """
        store = self.parts.store
        store.look()
        store.check_model()
        state = final() if callable(final) else final
        values = store.values() if state is None else store.values_of(state)
        trained = {entry.name for entry in store.layout.entries}
        if not all(all_finite(v) for name, v in values.items() if name in trained):
            raise RunStoppedError(
                f"member {self.parts.connection.member} has diverged, not all of its parameters "
                "are numbers; a lower --lr may help"
            )
        return state, values

    def finish(self) -> None:
        """Finish the run together with all others. Blocks."""
        parts = self.parts
        if not parts.averages.begun:
            self._begin_average(None)
        self._take_average()
        parts.timeline.finish()
        if self._replicas is not None:
            self._replicas.end(early=False)
        self._tell()
        self._tell_surveyed()
        self._account()
        parts.inbox.wait_until(lambda: parts.connection.state.over)
        parts.connection.tell(Accounts(parts.transport.ledger.to_wire()))

    def finish_alone(self) -> None:
        """If the last average still holds, finish the run without waiting for the other members.

        Used when the process exits and `close` was not called.
        """
        if self.parts.averages.stands and not self.closed:
            self._account()
            self.parts.connection.tell(Accounts(self.parts.transport.ledger.to_wire()))
            self.end(None)

    def leave(self) -> None:
        """Leave the run alone; the others go on."""
        self.end(RunStoppedError("it has left by itself"))

    def end(self, error: BaseException | None) -> None:
        """End this member's part in the run. The others are told `error`, if there is one."""
        if self.closed:
            return
        self.closed, self._why = True, error
        parts = self.parts
        for attached in (self._hook, self._attempts):
            if attached is not None:
                attached.remove()
        parts.advice.close()
        parts.planner.close()
        parts.exchange.close()
        if error is None:
            parts.connection.close()
        else:
            parts.connection.leave(error)
        parts.transport.close(linger=0.0 if error else 1.0)
        if parts.log is not None:
            parts.log.close()
        parts.store.release()

    def require_open(self) -> None:
        """Raise the error that ended this member's part in the run, if it has ended."""
        if not self.closed:
            return
        if isinstance(self._why, WashError):
            raise type(self._why)(str(self._why)) from None
        why = f" because of {self._why!r:.100}" if self._why is not None else ""
        raise RunStoppedError(
            f"member {self.parts.connection.member} has left the run{why}; join again to train on"
        )

    @property
    def _snapshot(self) -> Snapshot:
        """The run, id, step and round of this member."""
        connection, timeline = self.parts.connection, self.parts.timeline
        return Snapshot(
            run=connection.origin,
            member=connection.member,
            step=timeline.steps,
            round=timeline.round,
        )

    def _round(self) -> None:
        """Run the round that follows an optimizer step.

        After an error this member's part in the run is over; it may join again.
        """
        parts, timeline = self.parts, self.parts.timeline
        try:
            with self._replicas_told():
                if parts.averages.step():
                    timeline.go_on()
                parts.store.learning_rate.sample()
                parts.advice.before_round()
                timeline.step()
                parts.checkpointing.after_round(timeline)
                self._tell_surveyed()
                if parts.inbox.guests or parts.startup.serves:
                    parts.startup.serve_guests(self._snapshot)
                if self._replicas is not None:
                    self._replicas.after_round(timeline.round, parts.store)
                parts.advice.after_round(timeline.round, self.members)
                if timeline.ended - self._told_at > max(1.0, len(self.members) / FEW):
                    self._tell()
                    parts.store.check_model()
        except RunStoppedError as error:
            self.end(error)
            raise

    def _tell(self) -> None:
        """Report progress to the coordinator."""
        parts = self.parts
        self._told_at = parts.timeline.ended
        parts.exchange.measure()
        self.vitals = vitals_of(
            parts.timeline,
            parts.exchange,
            parts.transport.ledger,
            parts.refusals,
            parts.derivation.cpu_seconds,
        )
        parts.connection.tell(self.vitals)

    def _tell_surveyed(self) -> None:
        if self.parts.surveyor is not None:
            for found in self.parts.surveyor.found:
                self.parts.connection.tell(found)
            self.parts.surveyor.found.clear()

    def _account(self) -> None:
        """Send the final report, once."""
        if not self._accounted:
            self._accounted = True
            parts = self.parts
            if parts.log is not None:
                parts.log.finish()
            layout = parts.store.layout
            parts.connection.tell(
                finished(parts.timeline, parts.exchange, layout, parts.strategy, parts.refusals)
            )

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
