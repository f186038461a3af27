"""A member of a population: the public face of everything below it.

`connect` finds the run, `join` makes a model part of it, and from then on the round runs in the
optimizer's post-step hook. The built-in trainer uses nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from washp2p.connection import Connection
from washp2p.control import Finished
from washp2p.delay import delay_for
from washp2p.endpoints import advertised, require_loopback, where_to_listen
from washp2p.errors import UsageError
from washp2p.evaluation.average import average_peer_to_peer
from washp2p.exchange import Exchange, Staged, stage
from washp2p.inbox import Inbox
from washp2p.lanes import as_bytes
from washp2p.ledger import Kind
from washp2p.planner import Planner
from washp2p.rates import papa_all_reduce, papa_payload
from washp2p.runlog import RunLog
from washp2p.store import Store
from washp2p.strategies import strategy_for
from washp2p.timeline import Timeline
from washp2p.transfer import Transfer
from washp2p.transports import listen

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from washp2p.layout import Layout
    from washp2p.ledger import Ledger
    from washp2p.rounds import MemberId, Roster

State = dict[str, torch.Tensor]


def connect(address: str, *, wait: float = 60.0, insecure: bool = False) -> Connection:
    """Find a run and take a place in it, before there is a model.

    `address` is the coordinator's (`tcp://HOST:PORT`); blocks until it answers, at most `wait`
    seconds. Plain text off loopback needs `insecure`. The connection's `config` says what to
    train. Raises UnreachableError, JoinRefusedError, UsageError.
    """
    require_loopback(address, insecure=insecure)
    return Connection(address, wait)


def join(
    run: str | Connection,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rounds: int = 0,
    bind: str | None = None,
    advertise: str | None = None,
    insecure: bool = False,
    log: Path | None = None,
) -> Member:
    """Make `model` a member of a run and wait until the population is complete.

    `run` is the coordinator's address or what `connect` returned. On return all members hold
    member 0's parameters and buffers; from then on each `optimizer.step()` ends with a round.
    The model's trainable parameters become views into one vector (same `Parameter` objects, same
    values); move it to its device and dtype before.

    `rounds` is how many steps will be made, if known. `bind` is where this member's data plane
    listens (default: a free port on loopback, or on the address facing a coordinator elsewhere),
    `advertise` what peers are told instead (`tcp://HOST[:PORT]`). Plain text off loopback needs
    `insecure`. `log` is a file for the run log. Blocks. Raises UsageError, JoinRefusedError,
    RunStoppedError.
    """
    connection = connect(run, insecure=insecure) if isinstance(run, str) else run
    try:
        member = Member(
            connection,
            model,
            optimizer,
            bind=where_to_listen(connection.address, bind, insecure=insecure),
            advertise=advertise,
            log=log,
        )
    except BaseException as error:
        connection.leave(error)
        raise
    try:
        member.begin(rounds)
    except BaseException as error:
        member.__exit__(type(error), error, None)
        raise
    return member


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
    ) -> None:
        self._connection = connection
        self._strategy = strategy_for(connection.config)
        self._store = Store(model, optimizer, self._strategy.slots(optimizer))
        self._log = RunLog(log) if log is not None else None
        self._transport = listen(bind)
        try:
            self._endpoint = advertised(self._transport.endpoint, advertise, connection.address)
        except UsageError:
            self._transport.close()
            raise
        self._transfer = Transfer(self._transport, connection.run, connection.member)
        self._optimizer = optimizer
        self._roster: Roster
        self._exchange: Exchange
        self._inbox: Inbox
        self._timeline: Timeline
        self._planner: Planner[Staged | None] | None = None
        self._hook: RemovableHandle | None = None
        self._sections: dict[str, torch.Tensor] = {}
        self._averaged: dict[str, torch.Tensor] | None = None

    @property
    def id(self) -> MemberId:
        """Its MemberId."""
        return self._connection.member

    @property
    def members(self) -> tuple[MemberId, ...]:
        """All members of the current epoch, in order."""
        return self._roster.members

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
        """Wait for the population, take over member 0's state, hook into the optimizer. Blocks."""
        config = self._connection.config
        self._connection.on_change(self._transport.interrupt)
        roster = self._connection.attach(self._store.layout, self._endpoint, rounds)
        self._roster = roster
        for peer in roster.peers:
            if peer.member != self.id:
                self._transport.connect(peer.member, peer.endpoint)
        self._exchange = Exchange(
            store=self._store,
            transport=self._transport,
            roster=roster,
            me=self.id,
            run=self._connection.run,
            add=config.late == "difference" and config.max_delay != "0",
        )
        self._inbox = Inbox(
            connection=self._connection,
            transport=self._transport,
            transfer=self._transfer,
            arrivals=self._exchange.arrivals,
            roster=roster,
        )
        self._strategy.prepare(self._store.layout, len(roster.peers), roster.position(self.id))
        self._planner = Planner(
            lambda seed: stage(self._strategy.plan(seed), self._store.lane),
            self._connection.seed_of,
            lambda staged: staged.bytes if staged is not None else 0,
        )
        self._timeline = Timeline(
            connection=self._connection,
            inbox=self._inbox,
            exchange=self._exchange,
            planner=self._planner,
            delay=delay_for(config.max_delay),
            expire=config.expire,
            rounds=rounds,
            log=self._log,
        )
        first = roster.members[0]
        sections = self._store.sections()
        if self.id == first:
            for name, vector in sections.items():
                self._transfer.offer(f"start:{name}", as_bytes(vector), Kind.STATE)
        else:
            downloads = [
                self._transfer.fetch(first, f"start:{name}", as_bytes(vector), kind=Kind.STATE)
                for name, vector in sections.items()
                if len(vector)
            ]
            self._inbox.wait_until(lambda: all(download.done for download in downloads))
            self._store.load_sections(sections)
        self._connection.synced()
        self._inbox.wait_until(lambda: self._connection.has_seed(1))
        self._transfer.withdraw("start:")
        self._timeline.begin()
        self._hook = self._optimizer.register_step_post_hook(lambda *_: self._timeline.step())

    def average(self) -> State:
        """The state dict of the averaged model: fresh contiguous CPU tensors.

        Collective: every member takes part, here or when it leaves its block. Floating-point
        tensors are the mean in MemberId order, accumulated in float64; integer buffers the
        maximum. No step may follow. Blocks. Raises RunStoppedError.
        """
        if self._averaged is None:
            self._unhook()
            self._inbox.end_rounds()
            self._timeline.finish()
            self._connection.progress(self.round)
            self._sections = {name: v.clone() for name, v in self._store.sections().items()}
            self._averaged = average_peer_to_peer(
                self._sections,
                transfer=self._transfer,
                members=self.members,
                me=self.id,
                wait_until=self._inbox.wait_until,
            )
        return self._store.state_dict(self._averaged)

    def model_of(self, member: MemberId) -> State:
        """The final state dict of one member, fetched from it; after `average`. Blocks."""
        assert self._averaged is not None
        if member == self.id:
            return self._store.state_dict(self._sections)
        sections = {name: torch.empty_like(vector) for name, vector in self._sections.items()}
        downloads = [
            self._transfer.fetch(member, f"final:{name}", as_bytes(vector), kind=Kind.AVERAGE)
            for name, vector in sections.items()
            if len(vector)
        ]
        self._inbox.wait_until(lambda: all(download.done for download in downloads))
        return self._store.state_dict(sections)

    def report(self, **values: Any) -> None:
        """Add a line to the run's metrics.jsonl: plain values, besides member and round."""
        self._connection.metrics({"member": self.id, "round": self.round, **values})

    def result(
        self, *, members: list[float], ensemble: float, averaged: float, greedy_soup: float
    ) -> None:
        """Tell the coordinator what evaluation found, in per cent; it enters summary.json.

        `members` are in the order of `self.members`. One member does this, by custom the first.
        """
        self._connection.result(
            {
                "members": members,
                "ensemble": ensemble,
                "averaged": averaged,
                "greedy_soup": greedy_soup,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _finish(self) -> None:
        self.average()
        n = len(self.members)
        layout = self._store.layout
        timeline = self._timeline
        self._connection.finished(
            Finished(
                rounds=timeline.round,
                steps=timeline.steps,
                seconds=timeline.ended - timeline.began,
                waited=timeline.waited,
                max_delay=timeline.max_delay,
                applied_values=self._exchange.applied_values,
                expired_values=self._exchange.arrivals.expired_values,
                theory={
                    "parameters": layout.values,
                    "wash": self._strategy.expected_payload(layout, n) * self.round,
                    "paper": self._strategy.paper_payload(layout) * self.round,
                    "papa": papa_payload(layout) * self.round,
                    "papa_all_reduce": papa_all_reduce(layout, n) * self.round,
                },
            )
        )
        self._inbox.wait_until(lambda: self._connection.over)
        self._connection.accounts(self._transport.ledger)
