"""A run's whole configuration: one frozen value that the coordinator sends to joining workers.

It is validated once, here, so all code may rely on a RunConfig. In files, in messages and on
command lines an option has the same name, which does not mention its section.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any, Self

from washp2p.config.augmentation import Augmentation, augmentation_of
from washp2p.config.options import (
    check,
    expect_known,
    expect_within,
    flag,
    key_of,
    option,
    required,
)
from washp2p.config.presets import ADAMS, BY_EPOCHS, MEANS, PRESETS
from washp2p.config.sections import (
    ExchangeConfig,
    MethodConfig,
    OperationConfig,
    TrainingConfig,
)
from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from dataclasses import Field

LATER: dict[str, Any] = {"last": "", "on_bad_image": "stop", "block": "1"}
"""Options that run folders of earlier versions lack, each with the value that applies there."""
FREE = ("min_n", "patience")
"""Options that may be chosen anew for a run that goes on from a checkpoint."""
KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
"""The types of values that an option may have, by its annotation."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All choices that members share. Make it with `resolve`, which knows the presets."""

    n: int = option(MISSING, "number of members, at least 2", limits=(2, 65535))
    method: MethodConfig = field(default_factory=MethodConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    operation: OperationConfig = field(default_factory=OperationConfig)
    seed: int = option(0, "seed of all random numbers in the run", limits=(0, 2**63 - 1))

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that is out of range or contradicts another."""
        check(self)
        expect_within("min_n", self.operation.min_n, 0, self.n)
        augmentation_of(self.training.augment, self.training.data, self.seed, 0)
        method, epochs = self.method, self.training.epochs
        if method.name in MEANS and self.exchange.max_delay != "0":
            raise UsageError(
                f"--max-delay is {self.exchange.max_delay}; --method {method.name} takes means, "
                "for which everyone waits: expected 0, or leave it out"
            )
        if method.name in BY_EPOCHS and method.every >= epochs:
            raise UsageError(
                f"--every is {method.every} epochs of {epochs}, after the last of which no mean "
                f"is taken; --method {method.name} expects fewer"
            )
        if moment(method.from_, epochs) >= moment(method.until, epochs):
            raise UsageError(
                f"--from {method.from_} is not before --until {method.until} in {epochs} epochs"
            )

    @classmethod
    def resolve(cls, **given: Any) -> Self:
        """A configuration from the options `given` by name.

        Presets of method and data, then defaults, fill in the others. A value of None counts as not
        given. Raises UsageError.

        >>> config = RunConfig.resolve(n=5, p=0.05)
        >>> config.n, config.method.p, config.method.name, config.training.data
        (5, 0.05, 'wash', 'digits')
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if "n" not in chosen:
            raise UsageError("the number of members is missing; add --n N")
        data = chosen.get("data", "digits")
        expect_known("data", data, tuple(PRESETS))
        by_method = MEANS.get(chosen.get("method", ""), {})
        by_optimizer = ADAMS.get(chosen.get("optimizer", ""), {})
        return cls._made(PRESETS[data] | by_optimizer | by_method | chosen)

    @classmethod
    def from_file(cls, wire: dict[str, Any]) -> Self:
        """Inverse of `to_wire` for `wire` from a file, which an earlier version may have
        written.

        Options in LATER may be missing, because earlier versions lack them. Raises UsageError if
        another option is missing: a damaged file must not get default values.
        """
        names = {key_of(each) for _, each in options()}
        if missing := sorted(names - wire.keys() - LATER.keys()):
            raise UsageError(f"not a whole configuration: {', '.join(missing)} is missing")
        return cls.from_wire(LATER | wire)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Inverse of `to_wire`. Raises UsageError if `wire` is no configuration of this version."""
        known = {key_of(each): each for _, each in options()}
        wrong = [f"{key} is unknown" for key in wire if key not in known]
        wrong += [
            f"{key} is missing" for key, e in known.items() if required(e) and key not in wire
        ]
        wrong += [
            f"{key} is {value!r:.40}"
            for key, value in wire.items()
            if key in known and type(value) not in KINDS[str(known[key].type)]
        ]
        if wrong:
            raise UsageError(f"not a configuration of this version: {wrong[0]}")
        return cls._made(wire)

    @classmethod
    def _made(cls, values: dict[str, Any]) -> Self:
        sections: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in SECTIONS}}
        for section, each in options():
            if key_of(each) in values:
                sections[section][each.name] = values[key_of(each)]
        own = sections.pop("")
        return cls(**own, **{name: SECTIONS[name](**sections[name]) for name in SECTIONS})

    def with_options(self, **changed: Any) -> Self:
        """A copy with the options `changed`, given by name. Raises UsageError."""
        return self.from_wire(self.to_wire() | changed)

    def steps_until(self, when: str, steps: int) -> int:
        """How many of a run's `steps` are done at the moment `when`, written as for `--until`."""
        return floor(moment(when, self.training.epochs) * steps)

    def augmentation(self, member: int) -> Augmentation:
        """The augmentation of the member with number `member`. Never raises: it was validated."""
        return augmentation_of(self.training.augment, self.training.data, self.seed, member)

    def flags(self) -> list[str]:
        """The configuration as flags for a coordinator, `washp2p run` or `washp2p simulate`."""
        return [f"--{flag(name)}={value}" for name, value in self.to_wire().items()]

    def to_wire(self) -> dict[str, Any]:
        """All options as plain values, by name and without sections."""
        return {
            key_of(each): getattr(getattr(self, section) if section else self, each.name)
            for section, each in options()
        }


SECTIONS: dict[str, type] = {
    "method": MethodConfig,
    "exchange": ExchangeConfig,
    "training": TrainingConfig,
    "operation": OperationConfig,
}


def options() -> Iterator[tuple[str, Field[Any]]]:
    """Every option with the name of its section. `n` and `seed` have none."""
    for each in fields(RunConfig):
        if each.name in SECTIONS:
            yield from ((each.name, inner) for inner in fields(SECTIONS[each.name]))
        else:
            yield "", each


def moment(when: str, epochs: int) -> Fraction:
    """The fraction of a run of `epochs` epochs that a value of `--from` or `--until` means.

    >>> moment("0.25", 12), moment("3", 12)
    (Fraction(1, 4), Fraction(1, 4))
    """
    return min(Fraction(1), Fraction(when) if "." in when else Fraction(int(when), epochs))
