"""Makes one member: its core, and the sockets, threads and files around it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from washp2p.driver.outbox import DeviceOutbox
from washp2p.driver.planner import Planner
from washp2p.errors import UsageError
from washp2p.member.advice import Advice
from washp2p.member.averages import Averages
from washp2p.member.checkpointing import Checkpointing
from washp2p.member.core import MemberCore, Parts
from washp2p.member.derivation import Derivation
from washp2p.member.startup import Startup
from washp2p.model.parameters import plain_model
from washp2p.model.store import Store
from washp2p.protocol.messages.frames import HEADER_LIMIT
from washp2p.protocol.refusals import Refusals
from washp2p.rounds.delay import delay_for
from washp2p.rounds.exchange import Exchange
from washp2p.rounds.inbox import Inbox
from washp2p.rounds.repairer import Repairer
from washp2p.rounds.round_loop import Timeline
from washp2p.rounds.surveyor import Surveyor
from washp2p.runfolder.checkpoints import CheckpointFolder
from washp2p.runfolder.runlog import RunLog
from washp2p.sockets.addresses import advertised
from washp2p.sockets.keys import KeyPair
from washp2p.strategies import strategy_for
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen_as
from washp2p.transports.transfer import CHUNK_BYTES, Transfer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from washp2p.coordinator_link.connection import Connection
    from washp2p.member.checkpointing import Stateful
    from washp2p.protocol.roster import MemberId, Order
    from washp2p.rounds.merging import Staged
    from washp2p.rounds.repairer import Inputs
    from washp2p.strategies import Strategy
    from washp2p.transports.base import Transport

REFUSALS, REFUSALS_A_SECOND = 1000, 1
"""So many messages of a peer may be refused before it is cut off, and so many more as time goes."""

AT_ONCE = 4
"""Times what a member sends in a mean, on average, that it may be sent before it gets there."""

_log = logging.getLogger("washp2p")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The arguments of `join` other than the run, the model and the optimizer."""

    rounds: int
    bind: str
    advertise: str | None
    log: Path | None
    state: Stateful | None
    scaler: torch.amp.GradScaler | None
    repair_inputs: Inputs | None
    last: str
    buffers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a member's core has around it in this process."""

    connection: Connection
    choices: Choices
    last: str
    """The module whose parameters are the last layer; empty: the one registered last."""
    optimizer: torch.optim.Optimizer
    transport: Transport
    endpoint: str
    key: bytes
    """The public key of the data plane; empty where links are in plain text."""
    outbox: DeviceOutbox
    planner: Planner[Order, Staged | None]
    log: RunLog | None


def assemble(
    connection: Connection,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    choices: Choices,
) -> tuple[MemberCore, Surroundings]:
    """Make a member's core, and what it has around it.

    The model's parameters move into flat memory, and the data plane begins to listen. Raises
    UsageError.
    """
    config, me = connection.config, connection.member
    strategy = strategy_for(config)
    slots = strategy.slots(optimizer)
    last = choices.last or config.method.last
    store = Store(model, optimizer, slots, last=last, buffers=choices.buffers)
    log = None
    if choices.log is not None:
        log = RunLog(choices.log, connection.origin, me, go_on=connection.resumes)
    pair = KeyPair.fresh()
    transport = _transport(connection, choices.bind, pair, store)
    try:
        endpoint = advertised(transport.endpoint, choices.advertise, connection.address)
        repairer = _repairer(config.method.repair, model, me, choices.repair_inputs)
    except UsageError:
        transport.close()
        raise
    refusals: Refusals[MemberId] = Refusals(
        rate=REFUSALS_A_SECOND,
        burst=REFUSALS if connection.encrypted else inf,  # else nobody can tell whose they are
        tell=_log.warning,
        clock=time.monotonic,
    )
    clock = time.monotonic
    transfer = Transfer(transport, connection.run, me, refusals)
    outbox = DeviceOutbox(transport)
    exchange = Exchange(
        store=store,
        transport=transport,
        outbox=outbox,
        me=me,
        run=connection.run,
        add=config.exchange.late == "difference" and config.exchange.max_delay != "0",
        refusals=refusals,
        consensus=strategy.consensus(store.layout),
        weight=lambda: strategy.weight(store.learning_rate.share),
        room=_room_for_means(strategy, store, config.n),
    )
    inbox = Inbox(
        connection=connection,
        transport=transport,
        transfer=transfer,
        exchange=exchange,
        refusals=refusals,
        clock=clock,
    )
    surveyor = None
    if config.operation.track_consensus:
        surveyor = Surveyor(store, me, seed=config.seed, every=config.operation.track_consensus)
    derivation = Derivation(strategy, store, me)
    planner: Planner[Order, Staged | None] = Planner(
        derivation, connection.order_of, lambda staged: staged.bytes if staged is not None else 0
    )
    advice = Advice(
        connection=connection,
        store=store,
        model=model,
        optimizer=optimizer,
        merger=exchange.merger,
    )
    parts = Parts(
        connection=connection,
        strategy=strategy,
        slots=slots,
        rounds=choices.rounds,
        store=store,
        ledger=transport.ledger,
        refusals=refusals,
        exchange=exchange,
        inbox=inbox,
        timeline=Timeline(
            connection=connection,
            inbox=inbox,
            exchange=exchange,
            plans=planner,
            delay=delay_for(config.exchange.max_delay),
            expire=config.exchange.expire,
            rounds=choices.rounds,
            log=log,
            clock=clock,
            surveyor=surveyor,
            repairer=repairer,
        ),
        surveyor=surveyor,
        startup=Startup(
            connection=connection, inbox=inbox, transfer=transfer, store=store, clock=clock
        ),
        checkpointing=Checkpointing(
            connection=connection,
            inbox=inbox,
            store=store,
            exchange=exchange,
            ledger=transport.ledger,
            log=log,
            state=choices.state,
            folder=CheckpointFolder(connection.folder, me),
            clock=clock,
        ),
        averages=Averages(
            store=store,
            connection=connection,
            inbox=inbox,
            transfer=transfer,
            tell=advice.tell,
        ),
        advice=advice,
        log=log,
        planning=lambda: planner.cpu_seconds,
    )
    return MemberCore(parts), Surroundings(
        connection=connection,
        choices=choices,
        last=last,
        optimizer=optimizer,
        transport=transport,
        endpoint=endpoint,
        key=pair.public if connection.encrypted else b"",
        outbox=outbox,
        planner=planner,
        log=log,
    )


def _transport(connection: Connection, bind: str, pair: KeyPair, store: Store) -> Transport:
    config = connection.config
    admit = connection.state.member_of
    return listen_as(
        bind,
        wires=config.exchange.transport,
        device=store.device,
        patience=connection.patience,
        credentials=Credentials(pair, admit) if connection.encrypted else None,
        largest=HEADER_LIMIT + 1 + max(CHUNK_BYTES, store.layout.bytes),
        bounded=config.exchange.max_delay != "none",
    )


def _room_for_means(strategy: Strategy, store: Store, n: int) -> int:
    """The bytes that frames arriving before their round may take; 0: the default limit."""
    return AT_ONCE * int(strategy.expected_payload(store.layout, n)) if strategy.lockstep else 0


def _repairer(
    batches: int, model: torch.nn.Module, me: MemberId, inputs: Inputs | None
) -> Repairer | None:
    """Make the part for `--repair` (else None). Raises UsageError if that has no `inputs`."""
    if not batches:
        return None
    if inputs is None:
        raise UsageError(
            f"--repair is {batches}; expected inputs for it from the training loop: "
            "join(repair_inputs=...)"
        )
    return Repairer(plain_model(model)[0], me, inputs)
