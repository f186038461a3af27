"""A member of a population: the public face of everything below it.

From `join` on the round runs in the optimizer's post-step hook. The built-in trainer uses nothing
else.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Self

from washp2p.errors import RunStoppedError, UsageError, WashError
from washp2p.member.accounting import finished, vitals_of
from washp2p.member.advice import Advice
from washp2p.member.averages import Averages
from washp2p.member.checkpointing import Keeper
from washp2p.member.grad_scaler import Attempts
from washp2p.member.startup import Entry
from washp2p.model.digests import all_finite
from washp2p.model.parameters import plain_model
from washp2p.model.snapshot import Snapshot
from washp2p.model.store import Store
from washp2p.protocol.messages.frames import HEADER_LIMIT
from washp2p.protocol.messages.from_worker import Result
from washp2p.protocol.refusals import Conduct
from washp2p.rounds import hold_points
from washp2p.rounds.delay import delay_for
from washp2p.rounds.exchange import Exchange
from washp2p.rounds.inbox import Inbox
from washp2p.rounds.merging import Staged, stage
from washp2p.rounds.planner import Planner
from washp2p.rounds.repairer import Repairer
from washp2p.rounds.round_loop import Start, Timeline
from washp2p.rounds.surveyor import Surveyor
from washp2p.runfolder.runlog import RunLog
from washp2p.sockets.addresses import advertised
from washp2p.sockets.keys import KeyPair
from washp2p.strategies import strategy_for
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen_as
from washp2p.transports.transfer import CHUNK_BYTES, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import torch
    from torch.utils.hooks import RemovableHandle

    from washp2p.coordinator_link.connection import Connection
    from washp2p.member.averaging import Finale
    from washp2p.member.checkpointing import Stateful
    from washp2p.member.replicas import Replicas
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger
    from washp2p.protocol.messages.from_worker import Vitals
    from washp2p.protocol.roster import MemberId, Order, Roster
    from washp2p.rounds.repairer import Inputs

    State = dict[str, Any]
    Final = Callable[[], "State | None"] | Mapping[str, Any]

REFUSALS, REFUSALS_A_SECOND = 1000, 1
"""So many messages of a peer may be refused before it is cut off, and so many more as time goes."""

AT_ONCE = 4
"""Times what a member sends in a mean, on average, that it may be sent before it gets there."""

FEW = 32
"""Members of whom each may tell every second how it goes."""

_log = logging.getLogger("washp2p")


class Member:
    """One member of a population, from the initial state to the average. Use `join` to make one.

    A context manager: leaving the block finishes the run together with all others, leaving it by
    an exception tells them why. All methods belong to the training thread.
    """

    def __init__(
        self,
        connection: Connection,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        bind: str,
        advertise: str | None,
        log: Path | None,
        state: Stateful | None,
        scaler: torch.amp.GradScaler | None,
        repair_inputs: Inputs | None,
        last: str,
        buffers: Mapping[str, str],
    ) -> None:
        self._connection = connection
        self._strategy = strategy_for(connection.config)
        slots = self._strategy.slots(optimizer)
        last = last or connection.config.last
        self._told_too = {"last": last, "buffers": dict(buffers)}
        self._store = Store(model, optimizer, slots, last=last, buffers=buffers)
        self._replicas: Replicas | None = None
        self._log: RunLog | None = None
        if log is not None:
            resumes, origin = connection.resumes, connection.origin
            self._log = RunLog(log, origin, connection.member, go_on=resumes)
        self._key_pair = KeyPair.fresh()
        config = connection.config
        self._transport = listen_as(
            bind,
            wires=config.transport,
            device=self._store.device,
            patience=connection.patience,
            credentials=(
                Credentials(self._key_pair, connection.member_of) if connection.encrypted else None
            ),
            largest=HEADER_LIMIT + 1 + max(CHUNK_BYTES, self._store.layout.bytes),
            bounded=config.max_delay != "none",
        )
        try:
            self._endpoint = advertised(self._transport.endpoint, advertise, connection.address)
        except UsageError:
            self._transport.close()
            raise
        self._conduct: Conduct[MemberId] = Conduct(
            rate=REFUSALS_A_SECOND,
            burst=REFUSALS if connection.encrypted else inf,  # else nobody can tell whose they are
            tell=_log.warning,
            clock=time.monotonic,
        )
        self._transfer = Transfer(self._transport, connection.run, connection.member, self._conduct)
        self._optimizer = optimizer
        self._exchange = Exchange(
            store=self._store,
            transport=self._transport,
            me=self.id,
            run=connection.run,
            add=connection.config.late == "difference" and connection.config.max_delay != "0",
            conduct=self._conduct,
            consensus=self._strategy.consensus(self._store.layout),
            weight=lambda: self._strategy.weight(self._store.learning_rate.share),
            room=self._room_for_means(),
        )
        self._surveyor: Surveyor | None = None
        if config.track_consensus:
            every = config.track_consensus
            self._surveyor = Surveyor(self._store, self.id, seed=config.seed, every=every)
        self._repairer = _repairer(config.repair, model, self.id, repair_inputs)
        self._slots = slots
        self._advice = Advice(
            connection=connection,
            store=self._store,
            model=model,
            optimizer=optimizer,
            merger=self._exchange.merger,
        )
        self.vitals: Vitals | None = None
        """What it last said of how it goes, as it does every second; not to be changed."""
        self._planning = 0.0
        self._told_at = 0.0
        self._inbox = Inbox(
            connection=connection,
            transport=self._transport,
            transfer=self._transfer,
            exchange=self._exchange,
            conduct=self._conduct,
        )
        self._entry = Entry(
            connection=connection, inbox=self._inbox, transfer=self._transfer, store=self._store
        )
        self._keeper = Keeper(
            connection=connection,
            inbox=self._inbox,
            store=self._store,
            exchange=self._exchange,
            ledger=self._transport.ledger,
            log=self._log,
            state=state,
        )
        self._timeline: Timeline
        self._planner: Planner[Order, Staged | None] | None = None
        self._prepared: Roster | None = None
        self._hook: RemovableHandle | None = None
        self._scaler = scaler
        self._attempts: Attempts | None = None
        self.closed = False
        """Whether its part in the run is over."""
        self._why: BaseException | None = None
        self._accounted = False
        self._averages = Averages(
            store=self._store,
            connection=connection,
            inbox=self._inbox,
            transfer=self._transfer,
            tell=self._advice.tell,
        )

    @property
    def id(self) -> MemberId:
        """Its MemberId."""
        return self._connection.member

    @property
    def members(self) -> tuple[MemberId, ...]:
        """All members of the roster, in order; once averaged, all that the average is of."""
        current = self._averages.current
        over = current.over if current is not None and self._averages.stands else None
        return (over or self._connection.roster).members

    @property
    def layout(self) -> Layout:
        """The flat order of the model's trainable parameters, and the slots exchanged."""
        return self._store.layout

    @property
    def round(self) -> int:
        """The last round this member took part in: the population's clock.

        As many as the steps taken, unless `--max-delay none` let this member fall so far behind
        that it jumped. A loop that ends, and sets its learning rate, by it keeps with its peers.
        """
        return self._timeline.round

    @property
    def ledger(self) -> Ledger:
        """What this member has sent so far, by peer and kind; to be read only."""
        return self._transport.ledger

    @property
    def max_delay(self) -> str:
        """By how many rounds values may be late now: what `auto` has settled on, or "none"."""
        return self._timeline.max_delay

    def begin(self, rounds: int) -> None:
        """Wait for the population, take over its state, hook into the optimizer.

        `rounds` is how many the run has, 0 if not known. Blocks. Raises as `join`.
        """
        connection = self._connection
        self._strategy.begin(rounds)
        connection.on_change(self._transport.interrupt)
        hold_points.reach(hold_points.JOINING)
        key = self._key_pair.public if connection.encrypted else b""
        connection.attach(
            self._store.layout,
            self._endpoint,
            self._transport.near,
            key,
            rounds,
            self._advice.no_snapshots,
        )
        self._planner = Planner(
            self._derive,
            connection.order_of,
            lambda staged: staged.bytes if staged is not None else 0,
        )
        self._timeline = Timeline(
            connection=connection,
            inbox=self._inbox,
            exchange=self._exchange,
            planner=self._planner,
            delay=delay_for(connection.config.max_delay),
            expire=connection.config.expire,
            rounds=rounds,
            log=self._log,
            surveyor=self._surveyor,
            repairer=self._repairer,
        )
        if connection.resumes:
            start = self._keeper.go_on()
            self._entry.go_on_together(start, rounds=rounds)
            self._keeper.forget_what_was_to_come(start)
            self._timeline.begin(start)
        elif connection.enrolled:
            self._entry.start_together()
            self._timeline.begin(Start())
        else:
            joined = self._entry.come_in()
            self._timeline.begin(Start(round=joined.round), joined)
        self._averages.taken = connection.averages
        self._exchange.arrivals.go_on(connection.averages)
        self._advice.begin(self._slots)
        self._hook = self._optimizer.register_step_post_hook(lambda *_: self._round())
        if self._scaler is not None:
            self._attempts = Attempts(self._scaler, self._optimizer, self._round)

    def replicate(self, replicas: Replicas) -> None:
        """Have others follow: `replicas` of this model in its own group. Before the first step.

        Raises UsageError under `--repair`.
        """
        if self._repairer is not None:
            raise UsageError("--repair is for members on one device; leave it out")
        self._replicas = replicas
        with self._told():
            told = {"config": self._connection.config.to_wire(), "member": self.id}
            told |= {"members": self.members, **self._told_too}
            replicas.start(told, self._store, self._snapshot)

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
        self._require_open()
        if not self._averages.begun or self._averages.stands:
            self._begin_average(final)
        averaged = self._take_average().averaged
        return self._store.state_dict(averaged, trainable_only=trainable_only)

    def _take_average(self) -> Finale:
        if self._averages.stands or self._replicas is None:
            return self._averages.take()
        with self._replicas.waiting():
            finale = self._averages.take()
        self._replicas.share_average(finale.averaged, self.members)
        return finale

    def _begin_average(self, final: Final | None) -> None:
        """Begin the next average, unless the last one stands and is of the same values."""
        number, stands = self._averages.taken + 1, self._averages.stands
        with self._told():
            if not stands:
                self._timeline.pause(number)
                self._advice.before_average()
            state, values = self._values_for(final)
            if stands:
                if self._averages.is_of(values):
                    return
                self._timeline.pause(number)
            if self._replicas is not None:
                self._replicas.pause(self.round, self._store)
        self._averages.begin(values, self.round, by_hand=state is not None)

    def _values_for(self, final: Final | None) -> tuple[Any, dict[str, torch.Tensor]]:
        """What `final` gives, if anything, and what is to be averaged because of it."""
        store = self._store
        store.look()
        store.check_model()
        state = final() if callable(final) else final
        values = store.values() if state is None else store.values_of(state)
        trained = {entry.name for entry in store.layout.entries}
        if not all(all_finite(v) for name, v in values.items() if name in trained):
            raise RunStoppedError(
                f"member {self.id} has diverged, not all of its parameters are numbers; "
                "a lower --lr may help"
            )
        return state, values

    def leads(self) -> bool:
        """Whether it falls to this member to evaluate the population, and call `result`.

        One does, by custom the first that lives; the others wait until it has, or has died. After
        `average`, which it does if need be; blocks. Raises RunStoppedError.
        """
        return self._final().leads()

    def models(self) -> dict[MemberId, State]:
        """The final state dicts of all averaged members, by id; of those that live still.

        Fetched from them; after `average`, which it does if need be. Blocks.
        """
        return {peer: state for peer in self.members if (state := self.model_of(peer)) is not None}

    def model_of(self, member: MemberId) -> State | None:
        """The final state dict of one member; None if it is gone. As `models`. Blocks."""
        values = self._final().of(member)
        return None if values is None else self._store.state_dict(values)

    def report(self, **values: Any) -> None:
        """Add a line to the run's metrics.jsonl: plain `values`, besides member and round.

        Raises RunStoppedError if this member's part in the run is over.
        """
        self._require_open()
        self._connection.metrics({"member": self.id, "round": self.round, **values})

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
        self._require_open()
        self._connection.result(
            Result(
                number=max(1, self._averages.taken),
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
        self._require_open()
        self._connection.busy(float(limit))
        try:
            yield
        finally:
            if not self.closed:
                self._connection.busy(0.0)

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
                    self._advice.tell("disk", text)
                told = True
            else:
                return
            end = time.monotonic() + 1.0
            with suppress(WashError):  # the run may be over meanwhile: what is kept is not lost
                if not self.closed:
                    self._inbox.wait_until(partial(_is_past, end))
            time.sleep(max(0.0, end - time.monotonic()))

    def leave(self) -> None:
        """Leave the run alone: the others go on without this member, the model stays as it is.

        Does not wait for them. Harmless when this member's part in the run is over.
        """
        self._end(RunStoppedError("it has left by itself"))

    def close(self) -> None:
        """Finish the run together with all others, as leaving the block does. Blocks.

        Afterwards the model's parameters have memory of their own again. When interrupted it may
        be called again. Harmless when called twice. Raises RunStoppedError.
        """
        if not self.closed:
            try:
                self._finish()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._end(error)
                raise
            self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._end(error)
            return
        try:
            self.close()
        except BaseException as late:
            self._end(late)
            raise

    def _end(self, error: BaseException | None) -> None:
        """Be over: because of `error`, if there is one, which others are told."""
        if self.closed:
            return
        self.closed, self._why = True, error
        self._unhook()
        self._advice.close()
        if self._planner is not None:
            self._planner.close()
        self._exchange.close()
        if error is None:
            self._connection.close()
        else:
            self._connection.leave(error)
        self._transport.close(linger=0.0 if error else 1.0)
        if self._log is not None:
            self._log.close()
        self._store.release()

    def finish_alone(self) -> None:
        """The process ends after an average, without `close`: that is a finished run, too."""
        if self._averages.stands and not self.closed:
            self._account()
            self._connection.accounts(self._transport.ledger)
            self._end(None)

    def _require_open(self) -> None:
        """Raise why this member's part in the run is over, if it is."""
        if not self.closed:
            return
        if isinstance(self._why, WashError):
            raise type(self._why)(str(self._why)) from None
        why = f" because of {self._why!r:.100}" if self._why is not None else ""
        raise RunStoppedError(f"member {self.id} has left the run{why}; join again to train on")

    def _final(self) -> Finale:
        """The last average; the first one is taken if need be."""
        self._require_open()
        if not self._averages.begun:
            if self._averages.current is not None:
                raise UsageError(
                    "training has gone on since the last average, and what members had then is no "
                    "longer served; call average() first, as all members do"
                )
            self._begin_average(None)
        return self._take_average()

    @property
    def _snapshot(self) -> Snapshot:
        """Where this member is."""
        return Snapshot(
            run=self._connection.origin,
            member=self.id,
            step=self._timeline.steps,
            round=self._timeline.round,
        )

    def _round(self) -> None:
        """What follows an optimizer step. An error ends this member's part: it may join anew."""
        try:
            with self._told():
                if self._averages.step():
                    self._timeline.go_on()
                self._store.learning_rate.sample()
                self._advice.before_round()
                self._timeline.step()
                self._keeper.after_round(self._timeline)
                self._tell_surveyed()
                if self._inbox.guests or self._entry.serves:
                    self._entry.serve_guests(self._snapshot)
                if self._replicas is not None:
                    self._replicas.after_round(self.round, self._store)
                self._advice.after_round(self.round, self.members)
                if self._timeline.ended - self._told_at > max(1.0, len(self.members) / FEW):
                    self._tell()
                    self._store.check_model()
        except RunStoppedError as error:
            self._end(error)
            raise

    def _room_for_means(self) -> int:
        """Bytes that frames of an exchange may take that is not in the very next round."""
        if not self._strategy.lockstep:
            return 0
        n = self._connection.config.n
        return AT_ONCE * int(self._strategy.expected_payload(self._store.layout, n))

    def _tell(self) -> None:
        """Say how it goes; the more members there are, the less often."""
        self._told_at = self._timeline.ended
        self._exchange.measure()
        self.vitals = vitals_of(
            self._timeline, self._exchange, self._transport.ledger, self._conduct, self._planning
        )
        self._connection.vitals(self.vitals)

    def _tell_surveyed(self) -> None:
        if self._surveyor is not None:
            for found in self._surveyor.found:
                self._connection.surveyed(found)
            self._surveyor.found.clear()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error within is the end of this member's part for its replicas, who wait for it."""
        try:
            yield
        except BaseException:
            if self._replicas is not None:
                self._replicas.end(early=True)
            raise

    def _derive(self, order: Order) -> Staged | None:
        """The plan of a round, where the store can use it. On the planner's thread."""
        number, seed, roster = order
        if len(roster.members) < 2 or not self._strategy.due(number):
            return None
        if roster is not self._prepared:
            position = roster.position(self.id)
            self._strategy.prepare(self._store.layout, len(roster.members), position)
            self._prepared = roster
        began = time.thread_time()
        plan = self._strategy.plan(seed)
        if plan is not None and plan.mean is not None and not self._strategy.lockstep:
            raise UsageError(
                f"{type(self._strategy).__name__} plans a mean, for which everyone must wait; "
                "expected lockstep = True"
            )
        staged = stage(plan, roster, self._store.lane)
        self._planning += time.thread_time() - began
        return staged

    def _unhook(self) -> None:
        for attached in (self._hook, self._attempts):
            if attached is not None:
                attached.remove()
        self._hook = self._attempts = None

    def _finish(self) -> None:
        if not self._averages.begun:
            self._begin_average(None)
        self._take_average()
        self._timeline.finish()
        if self._replicas is not None:
            self._replicas.end(early=False)
        self._tell()
        self._tell_surveyed()
        self._account()
        self._inbox.wait_until(lambda: self._connection.over)
        self._connection.accounts(self._transport.ledger)

    def _account(self) -> None:
        """Say what this member did, once."""
        if not self._accounted:
            self._accounted = True
            if self._log is not None:
                self._log.finish()
            layout, conduct = self._store.layout, self._conduct
            self._connection.finished(
                finished(self._timeline, self._exchange, layout, self._strategy, conduct)
            )


def _is_past(end: float) -> bool:
    return time.monotonic() > end


def _repairer(
    batches: int, model: torch.nn.Module, me: MemberId, inputs: Inputs | None
) -> Repairer | None:
    """What `--repair` asks for. Raises UsageError if it lacks inputs."""
    if not batches:
        return None
    if inputs is None:
        raise UsageError(
            f"--repair is {batches}; expected inputs for it from the training loop: "
            "join(repair_inputs=...)"
        )
    return Repairer(plain_model(model)[0], me, inputs)
