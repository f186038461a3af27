"""Methods: what members exchange in a round. `--method` chooses one.

Everything that a method of your own needs can be imported from here (docs/new-strategy.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.config.sections import plugins
from washp2p.errors import UsageError
from washp2p.plan.consensus import Consensus
from washp2p.plan.philox import PhiloxStreams
from washp2p.plan.plan import Mean, Plan, Route, everything, pairs, reduce_and_share
from washp2p.plan.selection import Selection
from washp2p.protocol.layout import Layout
from washp2p.protocol.rates import expected_payload, expected_selected, layer_rates
from washp2p.strategies.base import Strategy
from washp2p.strategies.papa import Papa, Papa2, PapaAll
from washp2p.strategies.separate import Separate
from washp2p.strategies.wash import Sparta, Wash, WashOpt

if TYPE_CHECKING:
    from washp2p.config.config import RunConfig

__all__ = [
    "STRATEGIES",
    "Consensus",
    "Layout",
    "Mean",
    "PhiloxStreams",
    "Plan",
    "Route",
    "Selection",
    "Strategy",
    "everything",
    "expected_payload",
    "expected_selected",
    "layer_rates",
    "pairs",
    "reduce_and_share",
    "strategy_for",
]

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
    """The strategy named `config.method.name`, from this package or another installed one.

    Raises UsageError if there is none.
    """
    kind = STRATEGIES.get(config.method.name)
    return (kind or _installed(config.method.name))(config)


def _installed(name: str) -> type[Strategy]:
    try:
        (found,) = plugins().select(name=name)
        kind = found.load()
    except (ValueError, ImportError, AttributeError) as error:
        raise UsageError(
            f"--method {name} cannot be had here: {error}; install the package that brings it, "
            "once, wherever a member runs"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise UsageError(f"--method {name} is {kind!r:.100}; expected a subclass of Strategy")
    return kind
