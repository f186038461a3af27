"""Writes a member's checkpoints, and goes on from one.

A checkpoint has a snapshot of the member, its totals so far, and what the training loop adds. It is
taken after a round with nothing outstanding. So a population in lockstep that goes on from
checkpoints ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from washp2p.errors import ProtocolError, UsageError
from washp2p.model.optimizers import NATURAL
from washp2p.model.snapshot import Snapshot, open_snapshot, restore, take
from washp2p.protocol.ledger import Loss
from washp2p.rounds.round_loop import Start

if TYPE_CHECKING:
    from washp2p.model.store import Store
    from washp2p.protocol.ledger import Ledger
    from washp2p.rounds.exchange import Exchange
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane, Log
    from washp2p.rounds.round_loop import RoundLoop
    from washp2p.rounds.waiting import Clock, Procedure

_log = logging.getLogger("washp2p")


class Stateful(Protocol):
    """The state of a training loop besides model and optimizer, such as random streams."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values (JSON's) and tensors.

        Called within `optimizer.step()`, after its round.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. The tensors in it are on the CPU now."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a checkpoint has besides the member's state: totals so far, and the loop's state."""

    seconds: float
    waited: float
    generations: list[tuple[int, int, int]]
    ledger: list[dict[str, Any]]
    values: tuple[int, int]
    """The numbers of applied and of refused values."""
    lost: dict[str, int]
    log: tuple[int, bool] | None
    """As `Log.keep` returned it."""
    state: Any
    """What the loop's `state_dict` returned."""


def kept_in(extra: dict[str, Any]) -> Kept:
    """Read a checkpoint's `extra` values. Raises ProtocolError if no member wrote such values."""
    spans = extra.get("generations", extra.get("epochs"))  # as earlier versions called them
    match {**extra, "generations": spans}:
        case {
            "seconds": float(seconds),
            "waited": float(waited),
            "generations": list(generations),
            "ledger": list(ledger),
            "values": [int(applied), int(refused)],
            "lost": dict(lost),
            "log": None | [int(), bool()] as log,
            "state": state,
        } if all(map(_is_span, generations)):
            return Kept(
                seconds=seconds,
                waited=waited,
                generations=[tuple(row) for row in generations],
                ledger=ledger,
                values=(applied, refused),
                lost=lost,
                log=None if log is None else (log[0], log[1]),
                state=state,
            )
    raise ProtocolError(f"it holds {extra!r:.200}")


def _is_span(row: object) -> bool:
    match row:
        case [int(), int(), int()]:
            return True
    return False


class Folder(Protocol):
    """Where one member's checkpoints lie, as `runfolder.checkpoints.CheckpointFolder`."""

    def name(self, round_number: int) -> str:
        """The name of a round's checkpoint, for error messages."""

    def read(self, round_number: int) -> bytes:
        """Return the checkpoint of a round. Raises UsageError if it cannot be read."""

    def write(self, round_number: int, data: bytes) -> None:
        """Write and flush a round's checkpoint to disk, whole or not at all. Raises UsageError."""

    def forget(self, rounds: range) -> None:
        """Delete all members' checkpoints of these rounds."""


class Checkpointing:
    """One member's checkpoints."""

    def __init__(
        self,
        *,
        connection: ControlPlane,
        inbox: Inbox,
        store: Store,
        exchange: Exchange,
        ledger: Ledger,
        log: Log | None,
        state: Stateful | None,
        folder: Folder,
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._connection = connection
        self._inbox = inbox
        self._store = store
        self._exchange = exchange
        self._ledger = ledger
        self._log = log
        self._state = state

    def after_round(self, round_loop: RoundLoop) -> Procedure[None]:
        """Save a checkpoint if one is due, or if no seed comes because the coordinator is away.

        A save waits until nothing is outstanding. Raises RunStoppedError.
        """
        if round_loop.round == self._connection.state.checkpoint_from(round_loop.round):
            problem = yield from self._save(round_loop)
            self._connection.saved(round_loop.round, problem)
        elif round_loop.goes_on and round_loop.round + 1 not in self._connection.state.seeds:
            self._connection.progress(round_loop.round)
            if not (yield from self._seed_comes(round_loop.round + 1)):
                yield from self._save(round_loop)

    def go_on(self) -> Start:
        """Restore this member from its checkpoint. Returns where its rounds begin.

        Raises UsageError if the checkpoint cannot be read.
        """
        kept = self._connection.state.rosters[0].first - 1
        me, path = self._connection.member, self._folder.name(kept)
        data = self._folder.read(kept)
        try:
            opened = open_snapshot(data)
            snapshot = opened.snapshot
            its = snapshot.run, snapshot.member, snapshot.round
            if its != (self._connection.origin, me, kept):
                raise ProtocolError(  # noqa: TRY301
                    f"it holds that of member {its[1]} of round {its[2]} of run {its[0].hex()}"
                )
            its_own = kept_in(snapshot.extra)
            restore(self._store, opened)
            self._continue(its_own)
        except (ProtocolError, ValueError) as error:
            raise UsageError(
                f"{path} is not the checkpoint of member {me} of round {kept}: {error!s:.200}; "
                "expected the file it wrote, and the model and loop it had"
            ) from error
        if self._log is not None:
            if its_own.log is None:
                raise UsageError(
                    f"{path} was written by a member without a run log; expected none now, either: "
                    "leave out log="
                )
            self._log.go_back(*its_own.log)
        if self._state is not None:
            try:
                self._state.load_state_dict(its_own.state)
            except UsageError:
                raise
            except NATURAL as error:  # the loop's own code
                raise UsageError(
                    f"the loop's load_state_dict refuses the state in {path}: {error!r:.200}; "
                    "expected the loop that it had"
                ) from error
        return Start(
            round=snapshot.round,
            steps=snapshot.step,
            seconds=its_own.seconds,
            waited=its_own.waited,
            generations=its_own.generations,
        )

    def _continue(self, its_own: Kept) -> None:
        """Count on from the checkpoint's totals. Raises ValueError if they are not valid."""
        self._ledger.load(its_own.ledger)
        merger = self._exchange.merger
        merger.applied_values, merger.refused_values = its_own.values
        self._exchange.arrivals.lost.update({Loss(k): n for k, n in its_own.lost.items()})

    def forget_what_was_to_come(self, start: Start) -> None:
        """Delete checkpoints of rounds after `start`: the run goes on from an earlier one."""
        self._folder.forget(range(start.round + 1, sys.maxsize))

    def _seed_comes(self, number: int) -> Procedure[bool]:
        seeds = self._connection.state.seeds
        end = self._clock() + self._connection.patience.seconds
        yield from self._inbox.wait_until(lambda: number in seeds, deadline=end)
        return number in seeds

    def _save(self, round_loop: RoundLoop) -> Procedure[str]:
        """Save a checkpoint of the present state. Returns an empty string, or the reason why it
        failed.
        """
        yield from round_loop.settle()
        self._exchange.flush()
        me, merger = self._connection.member, self._exchange.merger
        try:
            extra = {
                **round_loop.account(),
                "ledger": self._ledger.to_wire(),
                "values": [merger.applied_values, merger.refused_values],
                "lost": self._exchange.arrivals.lost_by_reason,
                "log": None if self._log is None else self._log.keep(),
                "state": {} if self._state is None else self._state.state_dict(),
            }
            where = Snapshot(
                run=self._connection.origin,
                member=me,
                step=round_loop.steps,
                round=round_loop.round,
                extra=extra,
            )
            data = take(self._store, where)
            self._folder.write(round_loop.round, data)
        except (OSError, *NATURAL) as error:  # of the disk, the loop, or the optimizer's own code
            _log.warning(
                "member %d: no checkpoint of round %d: %s; the run goes on, the last one is kept",
                me,
                round_loop.round,
                error,
            )
            return str(error)
        return ""
