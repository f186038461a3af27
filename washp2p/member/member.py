"""A member of a population: what a training loop sees of it.

From `join` on the round runs in the optimizer's post-step hook. The built-in trainer uses nothing
else.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from washp2p.errors import RunStoppedError, UsageError, WashError
from washp2p.protocol.messages.from_worker import Busy, Metrics, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from washp2p.member.life import Final, Life, State
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger
    from washp2p.protocol.messages.from_worker import Vitals
    from washp2p.protocol.roster import MemberId


class Member:
    """One member of a population, from the initial state to the average. Use `join` to make one.

    A context manager: leaving the block finishes the run together with all others, leaving it by
    an exception tells them why. All methods belong to the training thread.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._parts = life.parts

    @property
    def closed(self) -> bool:
        """Whether its part in the run is over."""
        return self._life.closed

    @property
    def vitals(self) -> Vitals | None:
        """What it last said of how it goes, as it does every second; not to be changed."""
        return self._life.vitals

    @property
    def id(self) -> MemberId:
        """Its MemberId."""
        return self._parts.connection.member

    @property
    def members(self) -> tuple[MemberId, ...]:
        """All members of the roster, in order; once averaged, all that the average is of."""
        return self._life.members

    @property
    def layout(self) -> Layout:
        """The flat order of the model's trainable parameters, and the slots exchanged."""
        return self._parts.store.layout

    @property
    def round(self) -> int:
        """The last round this member took part in: the population's clock.

        As many as the steps taken, unless `--max-delay none` let this member fall so far behind
        that it jumped. A loop that ends, and sets its learning rate, by it keeps with its peers.
        """
        return self._parts.timeline.round

    @property
    def ledger(self) -> Ledger:
        """What this member has sent so far, by peer and kind; to be read only."""
        return self._parts.transport.ledger

    @property
    def max_delay(self) -> str:
        """By how many rounds values may be late now: what `auto` has settled on, or "none"."""
        return self._parts.timeline.max_delay

    def average(self, final: Final | None = None, *, trainable_only: bool = False) -> State:
        """The state dict of the averaged model: fresh contiguous CPU tensors.

        Collective: every member takes part, here or when it leaves its block; each one's k-th call
        belongs together. Floating-point tensors are the mean in MemberId order, accumulated in
        float64; buffers by the rules of `join`. What is equal on all members is not sent. Over the
        members that are alive: whenever one is lost before all have the mean, they begin anew.
        Training may go on, with rounds, after an average that all took after the same round; the
        last one is the run's. `final` is a state dict that is averaged in the model's place, or a
        function that gives one once nothing changes the model any more, as `ema.module.state_dict`
        does; the model stays as it is. With `trainable_only` the trainable parameters alone are
        returned. What is averaged stands until the next step, or until other values are averaged:
        later calls return it, and one that was interrupted goes on. Blocks.

        Raises RunStoppedError, also if this member has diverged: the average is of the others; and
        UsageError if `final` is the state dict of another model, or the model has trained and no
        round followed.
        """
        averaged = self._life.average(final).averaged
        return self._parts.store.state_dict(averaged, trainable_only=trainable_only)

    def leads(self) -> bool:
        """Whether it falls to this member to evaluate the population, and call `result`.

        One does, by custom the first that lives; the others wait until it has, or has died. After
        `average`, which it does if need be; blocks. Raises RunStoppedError.
        """
        return self._life.final().leads()

    def models(self) -> dict[MemberId, State]:
        """The final state dicts of all averaged members, by id; of those that live still.

        Fetched from them; after `average`, which it does if need be. Blocks.
        """
        return {peer: state for peer in self.members if (state := self.model_of(peer)) is not None}

    def model_of(self, member: MemberId) -> State | None:
        """The final state dict of one member; None if it is gone. As `models`. Blocks."""
        values = self._life.final().of(member)
        return None if values is None else self._parts.store.state_dict(values)

    def report(self, **values: Any) -> None:
        """Add a line to the run's metrics.jsonl: plain `values`, besides member and round.

        Raises RunStoppedError if this member's part in the run is over.
        """
        self._life.require_open()
        self._parts.connection.tell(Metrics({"member": self.id, "round": self.round, **values}))

    def result(
        self,
        *,
        members: list[float],
        ensemble: float,
        averaged: float,
        greedy_soup: float,
        over: Sequence[MemberId] | None = None,
    ) -> None:
        """Tell the coordinator what evaluation found, in per cent; it enters summary.json.

        `members` are the members' own accuracies in the order of `over`, which is all averaged
        members if not given; `ensemble`, `averaged` and `greedy_soup` are those of what they make
        together. One member does this: the one that `leads`. Raises RunStoppedError if this
        member's part in the run is over.
        """
        self._life.require_open()
        self._parts.connection.tell(
            Result(
                number=max(1, self._parts.averages.taken),
                over=list(self.members if over is None else over),
                members=list(map(float, members)),
                ensemble=float(ensemble),
                averaged=float(averaged),
                greedy_soup=float(greedy_soup),
            )
        )

    @contextmanager
    def busy(self, limit: float) -> Iterator[None]:
        """Be waited for while this block runs, for `limit` seconds at most.

        `with member.busy(600): validate()`. For what takes longer than twelve times `--patience`
        between two steps. Beyond `limit` this member is dropped as one that hangs. Raises
        RunStoppedError if its part in the run is over.
        """
        self._life.require_open()
        self._parts.connection.tell(Busy(float(limit)))
        try:
            yield
        finally:
            if not self.closed:
                self._parts.connection.tell(Busy(0.0))

    def persist(self, write: Callable[[], None]) -> None:
        """Call `write` until it succeeds: once a second, while peers are served.

        For what must not be lost, as the averaged model: a full disk raises OSError, or UsageError,
        which is said once. Blocks until there is room, or until it is interrupted.
        """
        told = False
        while True:
            try:
                write()
            except (OSError, UsageError) as error:
                if not told:
                    text = f"{error}; it is kept in memory and tried again until there is room"
                    self._parts.advice.tell("disk", text)
                told = True
            else:
                return
            end = time.monotonic() + 1.0
            with suppress(WashError):  # the run may be over meanwhile: what is kept is not lost
                if not self.closed:
                    self._parts.inbox.wait_until(partial(_is_past, end))
            time.sleep(max(0.0, end - time.monotonic()))

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the run alone: the others go on without this member, the model stays as it is.

        They are told that `error` is why, if it is given. Does not wait for them. Harmless when
        this member's part in the run is over.
        """
        self._life.end(error or RunStoppedError("it has left by itself"))

    def finish_alone(self) -> None:
        """The process ends after an average, without `close`: that is a finished run, too."""
        self._life.finish_alone()

    def close(self) -> None:
        """Finish the run together with all others, as leaving the block does. Blocks.

        Afterwards the model's parameters have memory of their own again. When interrupted it may
        be called again. Harmless when called twice. Raises RunStoppedError.
        """
        if not self.closed:
            try:
                self._life.finish()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._life.end(error)
                raise
            self._life.end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._life.end(error)
            return
        try:
            self.close()
        except BaseException as late:
            self._life.end(late)
            raise


def _is_past(end: float) -> bool:
    return time.monotonic() > end
