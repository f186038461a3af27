"""Makes the core of a member from what its driver gives it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from washp2p.member.advice import Advice
from washp2p.member.averages import Averages
from washp2p.member.checkpointing import Checkpointing
from washp2p.member.core import MemberCore, Parts
from washp2p.member.startup import Startup
from washp2p.protocol.refusals import Refusals
from washp2p.rounds.delay import delay_for
from washp2p.rounds.exchange import Exchange
from washp2p.rounds.inbox import Inbox
from washp2p.rounds.round_loop import RoundLoop
from washp2p.rounds.surveyor import Surveyor
from washp2p.transports.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from washp2p.member.checkpointing import Folder, Stateful
    from washp2p.model.store import Store
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.ports import ControlPlane, Log, Outbox, Plans
    from washp2p.rounds.repairer import Repairer
    from washp2p.rounds.waiting import Clock
    from washp2p.strategies import Strategy
    from washp2p.transports.base import Transport

REFUSALS, REFUSALS_A_SECOND = 1000, 1
"""A peer is cut off once more than REFUSALS of its messages were refused. With every second that
passes, REFUSALS_A_SECOND of the refused messages are forgotten."""

AT_ONCE = 4
"""Room for early frames if a method takes means: so many times what a member sends in a round."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """What a member's core needs of its driver."""

    connection: ControlPlane
    transport: Transport
    outbox: Outbox
    plans: Plans
    planning: Callable[[], float]
    """Returns the seconds of CPU time that plans have cost."""
    log: Log | None
    folder: Folder
    clock: Clock
    warn: Callable[[str], None]
    """Called with a line of text, to tell people of messages that were refused."""
    proven: bool
    """Whether the transport proves who sends a message."""


def core_of(
    ports: Ports,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    store: Store,
    strategy: Strategy,
    rounds: int,
    state: Stateful | None = None,
    repairer: Repairer | None = None,
) -> MemberCore:
    """Make a member's core.

    `store` holds the `model`, which `optimizer` trains for `rounds` rounds (0: not known). `state`
    is what checkpoints must hold besides the state of model and optimizer.
    """
    connection, transport, clock = ports.connection, ports.transport, ports.clock
    config, me = connection.config, connection.member
    refusals: Refusals[MemberId] = Refusals(
        rate=REFUSALS_A_SECOND,
        burst=REFUSALS if ports.proven else inf,  # else nobody can tell whose they are
        tell=ports.warn,
        clock=clock,
    )
    transfer = Transfer(transport, connection.run, me, refusals)
    exchange = Exchange(
        store=store,
        transport=transport,
        outbox=ports.outbox,
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
    advice = Advice(
        connection=connection,
        store=store,
        model=model,
        optimizer=optimizer,
        merger=exchange.merger,
    )
    return MemberCore(
        Parts(
            connection=connection,
            strategy=strategy,
            slots=tuple(slot.name for slot in store.layout.slots[1:]),
            rounds=rounds,
            store=store,
            ledger=transport.ledger,
            refusals=refusals,
            exchange=exchange,
            inbox=inbox,
            round_loop=RoundLoop(
                connection=connection,
                inbox=inbox,
                exchange=exchange,
                plans=ports.plans,
                delay=delay_for(config.exchange.max_delay),
                expire=config.exchange.expire,
                rounds=rounds,
                store=store,
                log=ports.log,
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
                log=ports.log,
                state=state,
                folder=ports.folder,
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
            log=ports.log,
            planning=ports.planning,
        )
    )


def _room_for_means(strategy: Strategy, store: Store, n: int) -> int:
    """The bytes that frames arriving before their round may take; 0: the default limit."""
    return AT_ONCE * int(strategy.expected_payload(store.layout, n)) if strategy.lockstep else 0
