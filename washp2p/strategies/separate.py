"""`none`: separate training, the papers' Baseline. It runs the same code, but exchanges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.strategies.base import Strategy

if TYPE_CHECKING:
    from washp2p.protocol.layout import Layout


class Separate(Strategy):
    """Members train apart and are averaged at the end."""

    def prepare(self, layout: Layout, n: int, position: int) -> None:
        pass

    def plan(self, seed: int) -> None:
        """Return None: there is nothing to exchange."""

    def expected_payload(self, layout: Layout, n: int) -> float:
        return 0.0

    def paper_payload(self, layout: Layout) -> float:
        return 0.0
