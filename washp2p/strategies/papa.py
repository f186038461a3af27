"""`papa`, and its special cases `papa-all`, `dart` and `papa-2` (PAPA, sections 2.1 to 2.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from washp2p.plan.plan import Mean, Plan, Route, everything, pairs, reduce_and_share
from washp2p.protocol.rates import all_reduce_payload, parameter_payload
from washp2p.strategies.base import Strategy

if TYPE_CHECKING:
    from washp2p.plan.plan import Indices
    from washp2p.protocol.layout import Layout


class PapaAll(Strategy):
    """theta_n <- mean of theta. As `dart`, it begins in the middle of the run."""

    lockstep: ClassVar[bool] = True
    _plan: Plan

    def prepare(self, layout: Layout, n: int, position: int) -> None:
        self._plan = reduce_and_share(everything(layout), np.arange(n), position, fingerprint=0)

    def plan(self, seed: int) -> Plan:
        return replace(self._plan, fingerprint=seed)

    def expected_payload(self, layout: Layout, n: int) -> float:
        """The bytes that a member sends in a ring all-reduce of all parameters."""
        return all_reduce_payload(layout, n)

    def paper_payload(self, layout: Layout) -> float:
        """The bytes of all parameters, counted once."""
        return parameter_payload(layout)


class Papa(PapaAll):
    """theta_n <- a theta_n + (1 - a) mean(theta), where 1 - a is proportional to the learning rate.

    Equation 1, section 2.3.
    """

    def weight(self, lr: float) -> float:
        return lr * (1 - self.config.alpha)


class Papa2(PapaAll):
    """theta_n <- mean of theta of two members; each n draws its own pair (Algorithm 2, m = 2)."""

    _all: Indices
    _n: int
    _position: int

    def prepare(self, layout: Layout, n: int, position: int) -> None:
        self._all, self._n, self._position = everything(layout), n, position

    def plan(self, seed: int) -> Plan:
        drawn, me, size = pairs(seed, self._n), self._position, len(self._all)
        to = [peer for peer, pair in enumerate(drawn) if me in pair and peer != me]
        sources = [peer for peer in sorted(drawn[me]) if peer != me]
        return Plan(
            send=Route(self._all, tuple((peer, 0, size) for peer in to)),
            receive=Route(self._all, tuple((peer, 0, size) for peer in sources)),
            selected=size,
            fingerprint=seed,
            mean=Mean(own=me in drawn[me], shared=False),
        )
