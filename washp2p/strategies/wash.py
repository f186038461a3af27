"""`wash` and `wash-opt`: parameter shuffling (WASH, Algorithm 1, equations 3 and 6).

`sparta` selects scalars in the same way, but averages them (Beton et al. 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from washp2p.model.optimizer_slots import optimizer_slots
from washp2p.plan.consensus import Consensus
from washp2p.plan.plan import Deriver, Plan
from washp2p.protocol.rates import expected_payload, layer_rates, paper_payload
from washp2p.strategies.base import Strategy

if TYPE_CHECKING:
    from fractions import Fraction

    import torch

    from washp2p.protocol.layout import Layout


class Wash(Strategy):
    """theta_n[i] <- theta_{pi_i(n)}[i] for each selected scalar i."""

    selective: ClassVar[bool] = True

    _deriver: Deriver

    def consensus(self, layout: Layout) -> Consensus | None:
        config = self.config
        return Consensus(layout, self._rates(layout), config.group) if config.p else None

    def prepare(self, layout: Layout, n: int, position: int) -> None:
        config = self.config
        self._deriver = Deriver(
            layout, self._rates(layout), n, position, group=config.group, block=config.block
        )

    def plan(self, seed: int) -> Plan:
        return self._deriver.derive(seed)

    def expected_payload(self, layout: Layout, n: int) -> float:
        return expected_payload(layout, self._rates(layout), n, self.config.group)

    def paper_payload(self, layout: Layout) -> float:
        return paper_payload(layout, self.config.schedule, self.config.p)

    def _rates(self, layout: Layout) -> tuple[Fraction, ...]:
        return layer_rates(self.config.schedule, self.config.p, layout.layers)


class WashOpt(Wash):
    """WASH+Opt: the optimizer's state of the same scalars is exchanged, too."""

    def slots(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        return optimizer_slots(optimizer)


class Sparta(Wash):
    """theta_n[i] <- mean of theta[i] for each selected scalar i."""

    lockstep: ClassVar[bool] = True

    def consensus(self, layout: Layout) -> None:
        """Return None: the new values are means, not another member's values."""

    def plan(self, seed: int) -> Plan:
        return self._deriver.derive_mean(seed)

    def expected_payload(self, layout: Layout, n: int) -> float:
        """The bytes of each selected scalar twice: once to reduce it, once to share the mean."""
        return 2 * super().expected_payload(layout, n)
