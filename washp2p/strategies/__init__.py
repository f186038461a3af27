"""Strategies: what a population does with a round. One module each, chosen by `--method`.

May import plan and store; never transports or sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.strategies.base import Strategy
from washp2p.strategies.papa import Papa, Papa2, PapaAll
from washp2p.strategies.separate import Separate
from washp2p.strategies.wash import Sparta, Wash, WashOpt

if TYPE_CHECKING:
    from washp2p.config import RunConfig

__all__ = ["STRATEGIES", "Strategy", "strategy_for"]

STRATEGIES: dict[str, type[Strategy]] = {
    "wash": Wash,
    "wash-opt": WashOpt,
    "sparta": Sparta,
    "papa": Papa,
    "papa-all": PapaAll,
    "dart": PapaAll,
    "papa-2": Papa2,
    "none": Separate,
}


def strategy_for(config: RunConfig) -> Strategy:
    """The strategy that `config.method` names."""
    return STRATEGIES[config.method](config)
