"""A member's reports to the coordinator: progress every second or so, and totals at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.protocol.messages.from_worker import Finished, Vitals
from washp2p.protocol.rates import papa_all_reduce, papa_payload

if TYPE_CHECKING:
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.exchange import Exchange
    from washp2p.rounds.round_loop import RoundLoop
    from washp2p.strategies import Strategy


def vitals_of(
    round_loop: RoundLoop,
    exchange: Exchange,
    ledger: Ledger,
    refusals: Refusals[MemberId],
    planning: float,
) -> Vitals:
    """Make the progress report: totals since the member joined. `planning` is the CPU time that
    plans have cost, in seconds.
    """
    return Vitals(
        steps=round_loop.steps,
        seconds=round_loop.seconds,
        waited=round_loop.waited,
        planning=planning,
        generation=exchange.generation,
        applied=exchange.merger.applied_values,
        max_delay=round_loop.max_delay,
        late=round_loop.late,
        lost=exchange.arrivals.lost_by_reason,
        refused=exchange.merger.refused_values,
        refused_messages={str(k): n for k, n in refusals.refused.items()},
        distance=exchange.distance,
        sent=[
            (k.peer, str(k.kind), k.wire, c.payload + c.header) for k, c in ledger.counts.items()
        ],
    )


def finished(
    round_loop: RoundLoop,
    exchange: Exchange,
    layout: Layout,
    strategy: Strategy,
    refusals: Refusals[MemberId],
) -> Finished:
    """Make the final report: what the member did, and the payload bytes that were expected.

    Of the expected bytes, `theory` follows from the method's selection, `paper` from the rule of
    the method's paper. `papa` and `papa_all_reduce` are what PAPA would send, without and with
    all-reduce.
    """
    generations = [(n, range(first, stop)) for n, first, stop in round_loop.generations]
    exchanges = [(n, strategy.rounds_due(rounds)) for n, rounds in generations if n > 1]
    return Finished(
        rounds=round_loop.round,
        steps=round_loop.steps,
        seconds=round_loop.seconds,
        waited=round_loop.waited,
        max_delay=round_loop.max_delay,
        applied_values=exchange.merger.applied_values,
        lost=exchange.arrivals.lost_by_reason,
        refused_values=exchange.merger.refused_values,
        refused_messages={str(k): n for k, n in refusals.refused.items()},
        parameters=layout.values,
        theory=float(sum(strategy.expected_payload(layout, n) * r for n, r in exchanges)),
        paper=float(strategy.paper_payload(layout) * sum(r for _, r in exchanges)),
        papa=float(papa_payload(layout) * sum(len(r) for _, r in generations)),
        papa_all_reduce=float(sum(papa_all_reduce(layout, n) * len(r) for n, r in generations)),
    )
