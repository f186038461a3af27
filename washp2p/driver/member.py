"""A member of a population, as a training loop sees it.

From `join` on, rounds run in the optimizer's post-step hook. The built-in trainer uses only what
this module offers.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from washp2p.errors import UsageError, WashError
from washp2p.protocol.messages.from_worker import Busy, Metrics, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from washp2p.config.config import RunConfig
    from washp2p.driver.lifecycle import Lifecycle
    from washp2p.member.core import Final, State
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger
    from washp2p.protocol.messages.from_worker import Vitals
    from washp2p.protocol.roster import MemberId


class Member:
    """One member of a population, from the initial state to the average. Use `join` to make one.

    It is a context manager. Leaving the block finishes the run together with all other members. If
    an exception leaves the block, this member ends and tells the others why. Only the training
    thread may call the methods.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._parts = lifecycle.core.parts

    @property
    def closed(self) -> bool:
        """Whether this member's part in the run is over: it has finished, or left."""
        return self._lifecycle.closed

    @property
    def vitals(self) -> Vitals | None:
        """The last progress report, made about every second; do not change it."""
        return self._lifecycle.core.vitals

    @property
    def id(self) -> MemberId:
        """The member's MemberId."""
        return self._parts.connection.member

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self._lifecycle.around.connection.config

    @property
    def members(self) -> tuple[MemberId, ...]:
        """The members of the newest roster, in order; after an average, those averaged over."""
        return self._lifecycle.core.members

    @property
    def layout(self) -> Layout:
        """The flat order of the model's trainable parameters, and the slots exchanged."""
        return self._parts.store.layout

    @property
    def round(self) -> int:
        """The last round that this member took part in.

        It equals the number of steps of a member that joined at the start, unless `--max-delay
        none` let the member fall so far behind that it skipped rounds. A loop that ends by this
        number, and sets its learning rate by it, keeps pace with its peers.
        """
        return self._parts.round_loop.round

    @property
    def ledger(self) -> Ledger:
        """What this member has sent so far, by peer and kind, in bytes; read it only."""
        return self._parts.ledger

    @property
    def max_delay(self) -> str:
        """By how many rounds values may be late at present; "none" if any lateness is allowed.

        The number changes under `--max-delay auto`.
        """
        return self._parts.round_loop.max_delay

    def average(self, final: Final | None = None, *, trainable_only: bool = False) -> State:
        """The state dict of the averaged model: fresh contiguous CPU tensors.

        All members take part, by this call or when they leave their block; the k-th calls of all
        members belong together. Floating-point tensors become the mean, added in MemberId order in
        float64. Buffers follow the rules of `join`. Tensors that are equal on all members are not
        sent. The average is over the members that are alive: if one is lost before all have the
        mean, the others start again without it.

        Training may go on after an average if all members took it after the same round. The last
        average is the result of the run. Until the next step, later calls return the same average,
        unless `final` gives other values. A call that was interrupted can be repeated.

        `final` is a state dict to average in place of the model's, or a function that returns one,
        such as `ema.module.state_dict`. The function is called when nothing changes the model any
        more. The model keeps its values. With `trainable_only`, only the trainable parameters are
        returned. Blocks.

        Raises RunStoppedError, also if this member has diverged; then the others average without
        it. Raises UsageError if `final` is the state dict of another model, or if the model trained
        without rounds.
        """
        averaged = self._lifecycle.average(final).averaged
        return self._parts.store.state_dict(averaged, trainable_only=trainable_only)

    def leads(self) -> bool:
        """Whether this member has to evaluate the population and call `result`.

        The first live member has to. On the others the call blocks until that member has called
        `result`, or has died. If no average was taken yet, this takes one. Blocks. Raises
        RunStoppedError, and UsageError if training has gone on since the last average.
        """
        return self._lifecycle.run(self._lifecycle.final().leads())

    def models(self) -> dict[MemberId, State]:
        """The final state dicts of all averaged members that are still alive, by MemberId.

        Each is fetched from its member. If no average was taken yet, this takes one. Blocks. Raises
        RunStoppedError, and UsageError if training has gone on since the last average.
        """
        return {peer: state for peer in self.members if (state := self.model_of(peer)) is not None}

    def model_of(self, member: MemberId) -> State | None:
        """The final state dict of one member, or None if that member is gone.

        Blocks. Raises what `models` raises.
        """
        values = self._lifecycle.run(self._lifecycle.final().of(member))
        return None if values is None else self._parts.store.state_dict(values)

    def report(self, **values: Any) -> None:
        """Add a line to the run's metrics.jsonl.

        The line has the member, the round and these `values`, which must be plain (JSON's). Raises
        RunStoppedError if this member has left the run.
        """
        self._lifecycle.require_open()
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
        """Report the accuracies that evaluation found, in per cent, for summary.json.

        `members` has the accuracy of each member, in the order of `over` (default: all averaged
        members). `ensemble`, `averaged` and `greedy_soup` are the accuracies of the ensemble, the
        averaged model and the soup. Only the member for which `leads` is True calls this. Raises
        RunStoppedError if this member has left the run.
        """
        self._lifecycle.require_open()
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
        """Let the others wait while the `with` block runs, for at most `limit` seconds.

        An example is `with member.busy(600): validate()`. Use it for work between two steps that
        takes longer than twelve times `--patience`. After `limit` seconds this member counts as
        hanging, and is dropped. Raises RunStoppedError if this member has left the run.
        """
        self._lifecycle.require_open()
        self._parts.connection.tell(Busy(float(limit)))
        try:
            yield
        finally:
            if not self.closed:
                self._parts.connection.tell(Busy(0.0))

    def persist(self, write: Callable[[], None]) -> None:
        """Call `write` once a second until it succeeds. Peers are served meanwhile.

        Use this for data that must not be lost, such as the averaged model. `write` has to raise
        OSError or UsageError if the disk is full; only the first error is logged. Blocks until
        there is room, or until it is interrupted.
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
                    self._lifecycle.serve(end - time.monotonic())
            time.sleep(max(0.0, end - time.monotonic()))

    def leave(self) -> None:
        """Leave the run alone. The others go on without this member; the model keeps its values.

        Does not block. Harmless if this member has left already.
        """
        self._lifecycle.leave()

    def close(self) -> None:
        """Finish the run together with all others, as leaving the block does. Blocks.

        Afterwards the model's parameters have memory of their own again. If interrupted, it may be
        called again. Harmless when called twice. Raises RunStoppedError.
        """
        if not self.closed:
            try:
                self._lifecycle.finish()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._lifecycle.end(error)
                raise
            self._lifecycle.end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._lifecycle.end(error)
            return
        try:
            self.close()
        except BaseException as late:
            self._lifecycle.end(late)
            raise
