"""The interface between a method and the exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from math import floor, inf
from typing import TYPE_CHECKING, ClassVar

from washp2p.config.config import moment
from washp2p.config.presets import BY_EPOCHS
from washp2p.errors import UsageError

if TYPE_CHECKING:
    import torch

    from washp2p.config.config import RunConfig
    from washp2p.plan.consensus import Consensus
    from washp2p.plan.plan import Plan
    from washp2p.protocol.layout import Layout


class Strategy(ABC):
    """A method: it says which slots are exchanged, in which rounds, and by which plan.

    `begin` is called first. For each generation `prepare` is called, then `plan` for each of the
    generation's rounds that is `due`. `config` is the method's section of the run's configuration.
    """

    lockstep: ClassVar[bool] = False
    """Whether members must wait for all values of a round, as means require (`--max-delay 0`)."""

    selective: ClassVar[bool] = False
    """Whether it heeds `--group` and `--block`. If not, they must have their defaults."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config.method
        self._max_delay = config.exchange.max_delay
        self._epochs = config.training.epochs
        self._first: float = 1
        self._last: float = inf
        self._rate = Fraction(1, self.config.every)

    def begin(self, rounds: int) -> None:
        """Prepare for a run of `rounds` rounds; 0 means that the number is not known.

        Raises UsageError if the method needs the number, or does not fit the other settings.
        """
        config = self.config
        if (config.group or config.block != "1") and not self.selective:
            what = f"--group is {config.group}" if config.group else f"--block is {config.block}"
            raise UsageError(
                f"{what}; --method {config.name} heeds neither --group nor --block: leave them out"
            )
        if self.lockstep and self._max_delay != "0":
            raise UsageError(
                f"--method {config.name} takes means, for which everyone waits; "
                f"--max-delay is {self._max_delay}, expected 0"
            )
        start, end = (moment(when, self._epochs) for when in (config.from_, config.until))
        by_epochs = config.name in BY_EPOCHS
        if not rounds and (by_epochs or start > 0 or end < 1):
            raise UsageError(
                f"--method {config.name} from {config.from_} until {config.until} needs the "
                "number of rounds; expected it from the training loop: join(rounds=...)"
            )
        if by_epochs:
            self._rate = min(Fraction(1), Fraction(self._epochs, rounds * config.every))
        self._first = floor(start * rounds) + 1
        self._last = floor(end * rounds) if end < 1 else inf
        if by_epochs:  # a mean after the last step would leave one model, N times
            self._last = min(self._last, rounds - 1)
        whole = range(1, rounds + 1) if rounds else range(1, config.every + 1)
        if not self.rounds_due(whole):
            raise UsageError(
                f"--method {config.name} --every {config.every} exchanges nothing in {rounds} "
                f"rounds from {config.from_} until {config.until}; expected at least once: lower "
                "--every, or choose --method none"
            )

    def due(self, number: int) -> bool:
        """Whether members exchange values in round `number`."""
        return self.rounds_due(range(number, number + 1)) == 1

    def rounds_due(self, rounds: range) -> int:
        """The number of rounds among `rounds` in which members exchange values."""
        first, last = max(rounds.start, self._first), min(rounds.stop - 1, self._last)
        if last < first:
            return 0
        above, below = self._rate.as_integer_ratio()
        return int(last) * above // below - (int(first) - 1) * above // below

    def slots(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """Names of the optimizer's state to exchange besides the parameters."""
        return ()

    def consensus(self, layout: Layout) -> Consensus | None:
        """An estimator of the distance to consensus; None if received values cannot show it."""
        return None

    def weight(self, lr: float) -> float:
        """How far a mean pulls a member's values: 1 replaces them.

        `lr` is the optimizer's present learning rate as a share of the highest so far.
        """
        return 1.0

    @abstractmethod
    def prepare(self, layout: Layout, n: int, position: int) -> None:
        """Begin a generation of `n` members (at least 2), with this member at `position`."""

    @abstractmethod
    def plan(self, seed: int) -> Plan | None:
        """What to send and receive in the round with this seed; None if nothing."""

    @abstractmethod
    def expected_payload(self, layout: Layout, n: int) -> float:
        """The expected bytes that a member sends in a round that is due."""

    @abstractmethod
    def paper_payload(self, layout: Layout) -> float:
        """The bytes per round, counted as the method's paper counts them."""
