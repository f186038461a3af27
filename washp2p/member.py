"""A member of a population: the public face of everything below it.

From `join` on the round runs in the optimizer's post-step hook. The built-in trainer uses nothing
else.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Self

from washp2p import points
from washp2p.conduct import Conduct
from washp2p.control import Finished, Result, Vitals
from washp2p.delay import delay_for
from washp2p.endpoints import advertised
from washp2p.entry import Entry
from washp2p.errors import RunStoppedError, UsageError
from washp2p.exchange import Exchange
from washp2p.finale import Finale
from washp2p.frames import HEADER_LIMIT
from washp2p.inbox import Inbox
from washp2p.keeper import Keeper
from washp2p.keys import KeyPair
from washp2p.listening import listen_as
from washp2p.merging import Staged, stage
from washp2p.parameters import plain_model
from washp2p.planner import Planner
from washp2p.rates import papa_all_reduce, papa_payload
from washp2p.repairer import Repairer
from washp2p.runlog import RunLog
from washp2p.scaler import Attempts
from washp2p.snapshot import Snapshot
from washp2p.store import Store, all_finite
from washp2p.strategies import strategy_for
from washp2p.surveyor import Surveyor
from washp2p.timeline import Start, Timeline
from washp2p.transfer import CHUNK_BYTES, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import torch
    from torch.utils.hooks import RemovableHandle

    from washp2p.connection import Connection
    from washp2p.keeper import Stateful
    from washp2p.layout import Layout
    from washp2p.ledger import Ledger
    from washp2p.repairer import Inputs
    from washp2p.replicas import Replicas
    from washp2p.rounds import MemberId, Order, Roster

    State = dict[str, torch.Tensor]

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
    ) -> None:
        self._connection = connection
        self._strategy = strategy_for(connection.config)
        self._store = Store(model, optimizer, self._strategy.slots(optimizer))
        self._replicas: Replicas | None = None
        self._log = RunLog(log, go_on=connection.resumes) if log is not None else None
        self._key_pair = KeyPair.fresh()
        self._transport = listen_as(
            connection,
            bind,
            self._key_pair,
            self._store.device,
            HEADER_LIMIT + 1 + max(CHUNK_BYTES, self._store.layout.bytes),
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
            weight=lambda: self._strategy.weight(self._store.lr),
            room=self._room_for_means(),
        )
        config = connection.config
        self._surveyor: Surveyor | None = None
        if config.track_consensus:
            every = config.track_consensus
            self._surveyor = Surveyor(self._store, self.id, seed=config.seed, every=every)
        self._repairer: Repairer | None = None
        if config.repair:
            if repair_inputs is None:
                raise UsageError(
                    f"--repair is {config.repair}; expected inputs for it from the training loop: "
                    "join(repair_inputs=...)"
                )
            self._repairer = Repairer(plain_model(model)[0], self.id, repair_inputs)
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
        self._finale: Finale | None = None
        self._averaged: dict[str, torch.Tensor] = {}
        self._averaged_over: Roster | None = None

    @property
    def id(self) -> MemberId:
        """Its MemberId."""
        return self._connection.member

    @property
    def members(self) -> tuple[MemberId, ...]:
        """All members of the current epoch, in order; once averaged, all that the average is of."""
        return (self._averaged_over or self._connection.roster).members

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
        points.reach(points.JOINING)
        key = self._key_pair.public if connection.encrypted else b""
        connection.attach(self._store.layout, self._endpoint, self._transport.near, key, rounds)
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
            where = Snapshot(self._timeline.steps, self._timeline.round)
            replicas.start(self._connection.config, self._store, where)

    def average(self, final: Callable[[], State | None] | None = None) -> State:
        """The state dict of the averaged model: fresh contiguous CPU tensors.

        Collective: every member takes part, here or when it leaves its block. Floating-point
        tensors are the mean in MemberId order, accumulated in float64; integer buffers the
        maximum. Over the members that are alive: whenever one is lost before all have the mean,
        they begin anew. No step may follow. `final` is called once nothing changes the model any
        more, and gives the state dict that is averaged in its place, as `ema.module.state_dict`
        does; the model stays as it is. What is averaged stands: later calls return it. Blocks.
        Raises RunStoppedError, also if this member has diverged: the average is of the others; and
        UsageError if `final` gives the state dict of another model.
        """
        if self._finale is None:
            self._unhook()
            with self._told():
                self._timeline.finish()
                state = None if final is None else final()
                store = self._store
                sections = store.sections() if state is None else store.sections_of(state)
                if not all_finite(sections):
                    raise RunStoppedError(
                        f"member {self.id} has diverged, not all of its parameters are numbers; "
                        "a lower --lr may help"
                    )
                if self._replicas is not None:
                    self._replicas.after_round(self.round, self._store)
                    self._replicas.end(early=False)
            self._connection.progress(self.round)
            self._finale = Finale(
                {name: vector.clone() for name, vector in sections.items()},
                connection=self._connection,
                inbox=self._inbox,
                transfer=self._transfer,
            )
            self._averaged, self._averaged_over = self._finale.average()
        return self._store.state_dict(self._averaged)

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
        sections = self._final().of(member)
        return None if sections is None else self._store.state_dict(sections)

    def report(self, **values: Any) -> None:
        """Add a line to the run's metrics.jsonl: plain `values`, besides member and round."""
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
        together. One member does this: the one that `leads`.
        """
        self._connection.result(
            Result(
                over=list(self.members if over is None else over),
                members=list(map(float, members)),
                ensemble=float(ensemble),
                averaged=float(averaged),
                greedy_soup=float(greedy_soup),
            )
        )

    def close(self) -> None:
        """Finish the run together with all others, as leaving the block does. Blocks.

        Harmless when called twice. Raises RunStoppedError.
        """
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            if error is None:
                self._finish()
                self._connection.close()
        except BaseException as late:
            error = late
            raise
        finally:
            self._unhook()
            if self._planner is not None:
                self._planner.close()
            self._exchange.close()
            if error is not None:
                self._connection.leave(error)
            self._transport.close(linger=0.0 if error else 1.0)
            if self._log is not None:
                self._log.close()

    def _final(self) -> Finale:
        if self._finale is None:
            self.average()
        assert self._finale is not None
        return self._finale

    def _round(self) -> None:
        """What follows an optimizer step. An error ends this member's part: it may join anew."""
        try:
            with self._told():
                self._timeline.step()
                self._keeper.after_round(self._timeline)
                self._tell_surveyed()
                if self._inbox.guests or self._entry.serves:
                    self._entry.serve_guests(Snapshot(self._timeline.steps, self._timeline.round))
                if self._replicas is not None:
                    self._replicas.after_round(self.round, self._store)
                if self._timeline.ended - self._told_at > max(1.0, len(self.members) / FEW):
                    self._tell()
        except RunStoppedError as error:
            self.__exit__(type(error), error, error.__traceback__)
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
        counts = self._transport.ledger.counts.items()
        self.vitals = Vitals(
            steps=self._timeline.steps,
            seconds=self._timeline.seconds,
            waited=self._timeline.waited,
            planning=self._planning,
            epoch=self._exchange.epoch,
            applied=self._exchange.merger.applied_values,
            max_delay=self._timeline.max_delay,
            late=self._timeline.late,
            lost=self._exchange.arrivals.lost_by_reason,
            refused=self._exchange.merger.refused_values,
            refused_messages={str(k): n for k, n in self._conduct.refused.items()},
            distance=self._exchange.distance,
            sent=[(k.peer, str(k.kind), k.wire, c.payload + c.header) for k, c in counts],
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
        self.average()
        self._tell()
        self._tell_surveyed()
        layout = self._store.layout
        timeline = self._timeline
        epochs = [(n, range(first, stop)) for n, first, stop in timeline.epochs]
        exchanges = [(n, self._strategy.rounds_due(rounds)) for n, rounds in epochs if n > 1]
        self._connection.finished(
            Finished(
                rounds=timeline.round,
                steps=timeline.steps,
                seconds=timeline.seconds,
                waited=timeline.waited,
                max_delay=timeline.max_delay,
                applied_values=self._exchange.merger.applied_values,
                lost=self._exchange.arrivals.lost_by_reason,
                refused_values=self._exchange.merger.refused_values,
                refused_messages={str(k): n for k, n in self._conduct.refused.items()},
                parameters=layout.values,
                theory=float(
                    sum(self._strategy.expected_payload(layout, n) * r for n, r in exchanges)
                ),
                paper=float(self._strategy.paper_payload(layout) * sum(r for _, r in exchanges)),
                papa=float(papa_payload(layout) * sum(len(r) for _, r in epochs)),
                papa_all_reduce=float(sum(papa_all_reduce(layout, n) * len(r) for n, r in epochs)),
            )
        )
        self._inbox.wait_until(lambda: self._connection.over)
        self._connection.accounts(self._transport.ledger)
