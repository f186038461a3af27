"""summary.json of a simulated run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.model.store import Store
from washp2p.protocol.messages.from_worker import Finished
from washp2p.protocol.rates import papa_all_reduce, papa_payload
from washp2p.runfolder.summary import member_row, run_totals
from washp2p.strategies import strategy_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from washp2p.config.config import RunConfig
    from washp2p.protocol.roster import MemberId
    from workers.training.trainer import Trainer


def summary_of(
    config: RunConfig,
    trainer: Trainer,
    steps: Mapping[MemberId, int],
    sent_by: Sequence[Sequence[int]],
    seconds: float,
) -> dict[str, Any]:
    """The summary of a run of `seconds` seconds. `trainer` is the trainer of one member.

    `steps` has the optimizer steps of each member, in order. `sent_by[a][b]` is the number of
    scalars that the member at position a sent to the member at position b.
    """
    members = list(steps)
    rounds = trainer.steps
    strategy = strategy_for(config)
    strategy.begin(rounds)
    exchanges = strategy.rounds_due(range(1, rounds + 1))
    slots = strategy.slots(trainer.optimizer)
    layout = Store(trainer.model, trainer.optimizer, slots, last=config.method.last).layout
    theory = strategy.expected_payload(layout, config.n) * exchanges
    paper = strategy.paper_payload(layout) * exchanges
    rows = []
    for position, member in enumerate(members):
        sent = sent_by[position]
        finished = Finished(
            rounds=rounds,
            steps=steps[member],
            seconds=seconds,
            waited=0.0,
            max_delay=config.exchange.max_delay if config.exchange.max_delay.isdecimal() else "0",
            applied_values=sum(row[position] for row in sent_by),
            lost={},
            refused_values=0,
            refused_messages={},
            parameters=layout.values,
            theory=theory,
            paper=paper,
            papa=papa_payload(layout) * rounds,
            papa_all_reduce=papa_all_reduce(layout, config.n) * rounds,
        )
        links = [
            {
                "peer": peer,
                "kind": "exchange",
                "wire": "memory",
                "payload": scalars * layout.scalar_bytes,
                "header": 0,
                "messages": 0,
                "expected": scalars * layout.scalar_bytes,
            }
            for peer, scalars in zip(members, sent, strict=True)
            if peer != member
        ]
        rows.append(member_row(member, "simulated", finished, links))
    return run_totals(
        config.method.name, config.n, rows, rounds=rounds, seconds=seconds, parameters=layout.values
    )
