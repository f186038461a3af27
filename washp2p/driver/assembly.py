"""Makes one member: its core, and the sockets, threads and files around it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from washp2p.driver.outbox import DeviceOutbox
from washp2p.driver.planner import Planner
from washp2p.errors import UsageError
from washp2p.member.assembly import Ports, core_of
from washp2p.member.derivation import Derivation
from washp2p.model.parameters import plain_model
from washp2p.model.store import Store
from washp2p.protocol.messages.frames import HEADER_LIMIT
from washp2p.rounds.repairer import Repairer
from washp2p.runfolder.checkpoints import CheckpointFolder
from washp2p.runfolder.runlog import RunLog
from washp2p.sockets.addresses import advertised
from washp2p.sockets.keys import KeyPair
from washp2p.strategies import strategy_for
from washp2p.transports.base import Credentials
from washp2p.transports.listening import listen_as
from washp2p.transports.transfer import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from washp2p.coordinator_link.connection import Connection
    from washp2p.member.checkpointing import Stateful
    from washp2p.member.core import MemberCore
    from washp2p.protocol.roster import MemberId, Order
    from washp2p.rounds.repairer import Inputs
    from washp2p.rounds.round_state import Staged
    from washp2p.transports.base import Transport

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
    last = choices.last or config.method.last
    store = Store(model, optimizer, strategy.slots(optimizer), last=last, buffers=choices.buffers)
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
    outbox = DeviceOutbox(transport)
    planner: Planner[Order, Staged | None] = Planner(
        Derivation(strategy, store, me),
        connection.order_of,
        lambda staged: staged.bytes if staged is not None else 0,
    )
    ports = Ports(
        connection=connection,
        transport=transport,
        outbox=outbox,
        plans=planner,
        planning=lambda: planner.cpu_seconds,
        log=log,
        folder=CheckpointFolder(connection.folder, me),
        clock=time.monotonic,
        warn=_log.warning,
        proven=connection.encrypted,
    )
    core = core_of(
        ports,
        model,
        optimizer,
        store=store,
        strategy=strategy,
        rounds=choices.rounds,
        state=choices.state,
        repairer=repairer,
    )
    return core, Surroundings(
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


def _repairer(
    batches: int, model: torch.nn.Module, me: MemberId, inputs: Inputs | None
) -> Repairer | None:
    """Make the Repairer if `--repair` is not 0. Raises UsageError if `inputs` is None then."""
    if not batches:
        return None
    if inputs is None:
        raise UsageError(
            f"--repair is {batches}; expected inputs for it from the training loop: "
            "join(repair_inputs=...)"
        )
    return Repairer(plain_model(model)[0], me, inputs)
