"""Simulates a method of another package from the plans that its strategy makes.

The reference implements each built-in method a second time. It knows any other method only by its
plans.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch

from washp2p.errors import UsageError
from washp2p.model.store import Store
from washp2p.plan.plan import everything
from washp2p.strategies import strategy_for
from workers.simulation.reference import Round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.config.config import RunConfig
    from washp2p.plan.plan import Plan
    from washp2p.strategies import Strategy


class PlannedRounds:
    """The plans of `config.method.name` for a population of copies of `model`."""

    def __init__(
        self,
        config: RunConfig,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        rounds: int,
    ) -> None:
        self._config = config
        self._rounds = rounds
        copy = deepcopy(model)
        optimizer = torch.optim.SGD(copy.parameters(), lr=0.0)
        self._layout = Store(copy, optimizer, last=config.method.last).layout
        self._places = everything(self._layout)
        self._strategies: dict[tuple[int, int], Strategy] = {}
        first = self._of(config.n, 0)
        self.due, self.weight = first.due, first.weight
        """`Strategy.due` and `Strategy.weight` of the method."""
        self.slots: Sequence[str] = first.slots(optimizer)
        plan = first.plan(0)
        self.shares = plan is not None and plan.mean is not None and plan.mean.shared

    def draw(self, seed: int, roster: Sequence[int]) -> Round:
        """The round of seed `seed` for `roster`. Raises UsageError if it cannot be simulated."""
        made = [self._of(len(roster), k).plan(seed) for k in range(len(roster))]
        plans = {m: plan for m, plan in zip(roster, made, strict=True) if plan is not None}
        received = [plan.receive.indices for plan in plans.values()]
        chosen = np.unique(np.concatenate(received)) if received else np.empty(0, dtype=np.int64)
        round_ = Round(np.searchsorted(self._places, chosen).tolist(), {})
        if any(plan.mean is not None for plan in plans.values()):
            self._means(round_, chosen, plans, roster)
            return round_
        for member in roster:
            sources = np.full(len(chosen), member)
            if member in plans:
                route = plans[member].receive
                for position, begin, end in route.parts:
                    places = np.searchsorted(chosen, route.indices[begin:end])
                    sources[places] = roster[position]
            round_.sources[member] = sources
        return round_

    def _means(
        self, round_: Round, chosen: np.ndarray, plans: dict[int, Plan], roster: Sequence[int]
    ) -> None:
        if len(plans) < len(roster):
            raise self._unknown("some members take a mean and others do not")
        for member, plan in plans.items():
            if plan.mean is None or plan.mean.shared != self.shares:
                raise self._unknown("its plans are of several kinds")
            among = {roster[position] for position, _, _ in plan.receive.parts}
            among |= {member} if plan.mean.own else set()
            if not plan.mean.shared:
                round_.pairs[member] = sorted(among)
                own = slice(None)
            else:
                if sorted(among) not in round_.groups:
                    round_.groups.append(sorted(among))
                own = round_.shard(member)
            if self.slots or not np.array_equal(plan.receive.indices, chosen[own]):
                raise self._unknown(
                    "its means are of optimizer state, of several selections, or of other shards "
                    "than reduce_and_share deals"
                )

    def _unknown(self, why: str) -> UsageError:
        return UsageError(f"--method {self._config.method.name} cannot be simulated: {why}")

    def _of(self, n: int, position: int) -> Strategy:
        if (n, position) not in self._strategies:
            strategy = strategy_for(self._config)
            strategy.begin(self._rounds)
            strategy.prepare(self._layout, n, position)
            self._strategies[n, position] = strategy
        return self._strategies[n, position]
