"""Derives the plan of a round, and copies its indices to the store's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.rounds.round_state import stage

if TYPE_CHECKING:
    from washp2p.model.store import Store
    from washp2p.protocol.roster import MemberId, Order, Roster
    from washp2p.rounds.round_state import Staged
    from washp2p.strategies import Strategy


class Derivation:
    """Derives the plans of member `me`. Its state belongs to the planner's thread."""

    def __init__(self, strategy: Strategy, store: Store, me: MemberId) -> None:
        self._strategy = strategy
        self._store = store
        self._me = me
        self._prepared: Roster | None = None

    def __call__(self, order: Order) -> Staged | None:
        """Derive the plan for `order`; None if nothing is exchanged in that round.

        Raises UsageError if the plan takes a mean and the strategy is not `lockstep`.
        """
        number, seed, roster = order
        if len(roster.members) < 2 or not self._strategy.due(number):
            return None
        if roster is not self._prepared:
            position = roster.position(self._me)
            self._strategy.prepare(self._store.layout, len(roster.members), position)
            self._prepared = roster
        plan = self._strategy.plan(seed)
        if plan is not None and plan.mean is not None and not self._strategy.lockstep:
            raise UsageError(
                f"{type(self._strategy).__name__} plans a mean, for which everyone must wait; "
                "expected lockstep = True"
            )
        return stage(plan, roster, self._store.copies)
