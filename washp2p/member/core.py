"""One member without I/O: what it does from its first state to the last average.

Each method that waits is a procedure (`rounds.waiting`). A driver runs the procedure and hands over
arriving messages. It also carries out what the core asks of its ports (`rounds.ports`). No sockets,
threads, files or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from washp2p.errors import RunStoppedError
from washp2p.member.accounting import finished, vitals_of
from washp2p.model.digests import all_finite
from washp2p.model.snapshot import Snapshot
from washp2p.protocol.messages.from_worker import Accounts
from washp2p.rounds import hold_points
from washp2p.rounds.round_loop import Start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from washp2p.member.advice import Advice
    from washp2p.member.averages import Averages
    from washp2p.member.checkpointing import Checkpointing
    from washp2p.member.peer_average import PeerAverage
    from washp2p.member.startup import Startup
    from washp2p.model.store import Store
    from washp2p.protocol.ledger import Ledger
    from washp2p.protocol.messages.from_worker import Attach, Vitals
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.exchange import Exchange
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane, Log
    from washp2p.rounds.round_loop import RoundLoop
    from washp2p.rounds.surveyor import Surveyor
    from washp2p.rounds.waiting import Procedure
    from washp2p.strategies import Strategy

    State = dict[str, Any]
    Final = Callable[[], "State | None"] | Mapping[str, Any]

FEW = 32
"""If there are at most so many members, each reports progress every second, else less often."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one member's core is made of."""

    connection: ControlPlane
    strategy: Strategy
    slots: tuple[str, ...]
    rounds: int
    """The run's last round, 0 if not known."""
    store: Store
    ledger: Ledger
    refusals: Refusals[MemberId]
    exchange: Exchange
    inbox: Inbox
    round_loop: RoundLoop
    surveyor: Surveyor | None
    startup: Startup
    checkpointing: Checkpointing
    averages: Averages
    advice: Advice
    log: Log | None
    planning: Callable[[], float]
    """Returns the seconds of CPU time that plans have cost."""


class MemberCore:
    """One member, made of `parts`."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.vitals: Vitals | None = None
        """The last progress report, made about every second. Do not change it."""
        self._told_at = 0.0
        self._accounted = False

    @property
    def members(self) -> tuple[MemberId, ...]:
        """The members of the newest roster, in order; after an average, those averaged over."""
        averages = self.parts.averages
        over = averages.current.over if averages.current is not None and averages.stands else None
        return (over or self.parts.connection.state.roster).members

    @property
    def snapshot(self) -> Snapshot:
        """The run, id, step and round of this member."""
        connection, round_loop = self.parts.connection, self.parts.round_loop
        return Snapshot(
            run=connection.origin,
            member=connection.member,
            step=round_loop.steps,
            round=round_loop.round,
        )

    def begin(self, attach: Attach) -> Procedure[None]:
        """Present the model by `attach`, wait for the population, and take over its state.

        Raises JoinRefusedError if the model does not fit the population's, RunStoppedError, or
        UsageError if the member's checkpoint cannot be read.
        """
        parts, connection = self.parts, self.parts.connection
        parts.strategy.begin(parts.rounds)
        hold_points.reach(hold_points.JOINING, 0)
        connection.tell(attach)
        state = connection.state
        yield from parts.inbox.wait_until(lambda: state.enrolled or state.donor is not None)
        if connection.resumes:
            start = parts.checkpointing.go_on()
            yield from parts.startup.go_on_together(start, rounds=parts.rounds)
            parts.checkpointing.forget_what_was_to_come(start)
            parts.round_loop.begin(start)
        elif state.enrolled:
            yield from parts.startup.start_together()
            parts.round_loop.begin(Start())
        else:
            joined = yield from parts.startup.come_in()
            parts.round_loop.begin(Start(round=joined.round), joined)
        parts.averages.taken = state.averages
        parts.exchange.arrivals.go_on(state.averages)
        parts.advice.begin(parts.slots)

    def round(self) -> Procedure[None]:
        """Run the round that follows an optimizer step. Raises UsageError, RunStoppedError."""
        parts, round_loop = self.parts, self.parts.round_loop
        if parts.averages.step():
            round_loop.go_on()
        parts.store.learning_rate.sample()
        parts.advice.before_round()
        yield from round_loop.advance()
        yield from parts.checkpointing.after_round(round_loop)
        if parts.surveyor is not None:
            self._tell_surveyed(parts.surveyor)
        if parts.inbox.guests or parts.startup.serves:
            parts.startup.serve_guests(self.snapshot)
        parts.advice.after_round(round_loop.round, members := self.members)
        if round_loop.ended - self._told_at > max(1.0, len(members) / FEW):
            self._tell()
            parts.store.check_model()

    def begin_average(self, final: Final | None) -> Procedure[bool]:
        """Begin the next average, unless the last one holds and is of the same values.

        `final` is as in `Member.average`. Returns whether one has begun. Raises RunStoppedError,
        UsageError.
        """
        averages, round_loop = self.parts.averages, self.parts.round_loop
        number, stands = averages.taken + 1, averages.stands
        if not stands:
            yield from round_loop.pause(number)
            self.parts.advice.before_average()
        state, values = self._values_for(final)
        if stands:
            if averages.is_of(values):
                return False
            yield from round_loop.pause(number)
        averages.begin(values, round_loop.round, by_hand=state is not None)
        return True

    def take_average(self) -> Procedure[PeerAverage]:
        """Finish the present average with all members. Raises RunStoppedError, UsageError."""
        return (yield from self.parts.averages.take())

    def finish(self) -> Procedure[None]:
        """Finish the run together with all others, after the last average."""
        parts = self.parts
        parts.round_loop.finish()
        self._tell()
        if parts.surveyor is not None:
            self._tell_surveyed(parts.surveyor)
        self._account()
        yield from parts.inbox.wait_until(lambda: parts.connection.state.over)
        parts.connection.tell(Accounts(parts.ledger.to_wire()))

    def finish_alone(self) -> None:
        """Send the final reports without waiting for the others."""
        self._account()
        self.parts.connection.tell(Accounts(self.parts.ledger.to_wire()))

    def serve_until(self, deadline: float) -> Procedure[None]:
        """Only serve peers until `deadline`. Raises RunStoppedError."""
        yield from self.parts.inbox.wait_until(lambda: False, deadline=deadline)

    def _values_for(self, final: Final | None) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the caller's state dict, or None without one, and the values to average.

        Raises RunStoppedError if not all trained values are finite.
        """
        store = self.parts.store
        store.refresh()
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

    def _tell(self) -> None:
        """Report progress to the coordinator."""
        parts = self.parts
        self._told_at = parts.round_loop.ended
        parts.exchange.measure()
        self.vitals = vitals_of(
            parts.round_loop, parts.exchange, parts.ledger, parts.refusals, parts.planning()
        )
        parts.connection.tell(self.vitals)

    def _tell_surveyed(self, surveyor: Surveyor) -> None:
        for found in surveyor.found:
            self.parts.connection.tell(found)
        surveyor.found.clear()

    def _account(self) -> None:
        """Send the final report, once."""
        if not self._accounted:
            self._accounted = True
            parts = self.parts
            if parts.log is not None:
                parts.log.finish()
            layout = parts.store.layout
            parts.connection.tell(
                finished(parts.round_loop, parts.exchange, layout, parts.strategy, parts.refusals)
            )
