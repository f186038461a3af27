"""What a method must tell the exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from washp2p.consensus import Consensus
    from washp2p.layout import Layout
    from washp2p.plan import Plan


class Strategy(ABC):
    """Which slots a method exchanges, and the plan of each round."""

    def __init__(self, schedule: str, p: float, group: int) -> None:
        self.schedule = schedule
        self.p = p
        self.group = group

    def slots(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """Names of the optimizer's state to exchange besides the parameters."""
        return ()

    def consensus(self, layout: Layout) -> Consensus | None:
        """What can tell from received values how far members are apart; None: nothing can."""
        return None

    @abstractmethod
    def prepare(self, layout: Layout, n: int, position: int) -> None:
        """Learn the epoch: the member is at `position` among `n`. Called before `plan`."""

    @abstractmethod
    def plan(self, seed: int) -> Plan | None:
        """What to send and receive in the round of `seed`; None if the method exchanges nothing."""

    @abstractmethod
    def expected_payload(self, layout: Layout, n: int) -> float:
        """Bytes a member sends in a round, in expectation."""

    @abstractmethod
    def paper_payload(self, layout: Layout) -> float:
        """The same as the method's paper counts it."""
