"""`wash` and `wash-opt`: parameter shuffling (WASH, Algorithm 1, equations 3 and 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.consensus import Consensus
from washp2p.plan import Deriver, Plan
from washp2p.rates import expected_payload, layer_rates, paper_payload
from washp2p.store import optimizer_slots
from washp2p.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

    from washp2p.layout import Layout


class Wash(Strategy):
    """theta_n[i] <- theta_{pi_i(n)}[i] for each selected scalar i."""

    _deriver: Deriver

    def consensus(self, layout: Layout) -> Consensus | None:
        """See Strategy."""
        rates = layer_rates(self.schedule, self.p, layout.layers)
        return Consensus(layout, rates, self.group) if self.p else None

    def prepare(self, layout: Layout, n: int, position: int) -> None:
        """See Strategy."""
        rates = layer_rates(self.schedule, self.p, layout.layers)
        self._deriver = Deriver(layout, rates, n, position, self.group)

    def plan(self, seed: int) -> Plan:
        """See Strategy."""
        return self._deriver.derive(seed)

    def expected_payload(self, layout: Layout, n: int) -> float:
        """See Strategy."""
        rates = layer_rates(self.schedule, self.p, layout.layers)
        return expected_payload(layout, rates, n, self.group)

    def paper_payload(self, layout: Layout) -> float:
        """See Strategy."""
        return paper_payload(layout, self.schedule, self.p)


class WashOpt(Wash):
    """WASH+Opt: the optimizer's state for the same scalars travels along."""

    def slots(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """See Strategy."""
        return optimizer_slots(optimizer)
