"""A run's whole configuration: one frozen value that the coordinator holds and sends at join.

It is validated once, here, so whoever holds a RunConfig may rely on it. The command lines of the
coordinator, `washp2p run` and `washp2p simulate` are made from its fields (`config.flags`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from importlib.metadata import entry_points
from math import floor
from typing import TYPE_CHECKING, Any, Self

from washp2p.config.augmentation import EXPECTED, Augmentation, augmentation_of
from washp2p.config.presets import ADAMS, BY_EPOCHS, MEANS, PRESETS
from washp2p.errors import UsageError
from washp2p.protocol.rates import SCHEDULES

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

LATE = ("overwrite", "difference")
ON_DIVERGENCE = ("reset", "drop", "stop")
TRANSPORTS = ("auto", "torch", "tcp")
METHODS = ("wash", "wash-opt", "sparta", "papa", "papa-all", "dart", "papa-2", "none")
ON_BAD_IMAGE = ("stop", "skip")
OPTIMIZERS = ("sgd", "adam", "adamw")
INITS = ("same", "different")
SMALLEST_P = 1e-15
MODELS = ("linear", "cnn", "resnet18", "vgg16", "resnet50", "timm:NAME")
TIMM = "timm"
"""Where a model, as in timm:efficientnet_lite0, or its pretrained weights come from."""

LATER: dict[str, Any] = {"last": "", "on_bad_image": "stop"}
"""Fields that run folders of earlier versions do not have, and what they mean there."""
FREE = ("min_n", "patience")
"""What may be chosen anew for a run that goes on from a checkpoint."""


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All choices that members share. Make it with `resolve`, which knows the presets."""

    n: int = field(metadata={"help": "members of the population, at least 2", "choices": None})
    min_n: int = _option(0, "members with which the run may start, others coming later; 0: all n")
    method: str = _option(
        "wash",
        "what members do with a round: one of these, or a strategy of an installed package",
        METHODS,
    )
    repair: int = _option(
        0, "papa-all, papa-2, dart: REPAIR the mean by so many batches (5 in the paper); 0: not"
    )
    p: float = _option(0.01, "base shuffling probability, 0 to 1 (equation 3)")
    schedule: str = _option("decreasing", "selection rate over layers (equation 6)", SCHEDULES)
    last: str = _option(
        "",
        "name of the module whose parameters are the last layer, whatever the order of "
        "registration; default: the last one registered",
    )
    group: int = _option(
        0, "permute (sparta: average) within random groups of at most G members; 0: all in one"
    )
    from_: str = _option(
        "0", "exchange only after this epoch, or this fraction of the run: 100, or 0.25"
    )
    until: str = _option(
        "1.0", "exchange only up to the end of this epoch, or fraction: 1 is epoch 1, 1.0 the end"
    )
    every: int = _option(
        1, "steps from one exchange to the next; epochs for papa-all, dart and papa-2"
    )
    alpha: float = _option(0.99, "papa: what is kept of a member at a pull to the mean (eq. 1)")
    max_delay: str = _option(
        "auto", "rounds by which values may be late: a number (0: lockstep), auto or none"
    )
    late: str = _option("overwrite", "how late values are applied", LATE)
    expire: int = _option(64, "rounds after which --max-delay none gives values up")
    transport: str = _option(
        "auto",
        "what carries values: for each pair of members what is nearest; torch.distributed wherever "
        "they share a machine; or tcp only",
        TRANSPORTS,
    )
    data: str = _option("digits", "data set", tuple(PRESETS))
    model: str = _option("cnn", "architecture; timm has hundreds", MODELS)
    image_size: int = _option(
        0, "make images so many pixels high and wide; 0: as they are, 224 in image folders"
    )
    weights: str = _option(
        "",
        "begin with pretrained weights, all but the last layer's: a file, on every worker's "
        "machine, or timm for timm's own download",
    )
    head_first: str = _option(
        "0", "train the last layer only up to the end of this epoch, or fraction, as --until"
    )
    epochs: int = _option(12, "passes over the training data")
    batch_size: int = _option(64, "images in a step")
    init: str = _option("same", "initial parameters: the first member's, or each its own", INITS)
    optimizer: str = _option("sgd", "what takes the steps", OPTIMIZERS)
    lr: float = _option(0.1, "learning rate at the first step")
    min_lr: float = _option(1e-4, "learning rate after the last step (cosine, by step)")
    momentum: float = _option(0.9, "momentum, of SGD only")
    weight_decay: float = _option(1e-4, "weight decay")
    swa_from: str = _option(
        "1.0",
        "after this epoch, or fraction, average each member's own epochs, too (SWA); 1.0: not",
    )
    swa_lr: float = _option(0.05, "constant learning rate from then on")
    augment: str = _option(
        "none",
        "what members do to their images, by turns or drawn (hetero), besides CIFAR's crops and "
        "flips: " + EXPECTED,
    )
    on_bad_image: str = _option(
        "stop", "what becomes of an image file that cannot be read", ON_BAD_IMAGE
    )
    holdout: float = _option(0.02, "share of the training data held out for GreedySoup")
    train_limit: int = _option(0, "take the first K training images only; 0 takes all")
    on_divergence: str = _option(
        "reset", "what becomes of a member that sends values that are not finite", ON_DIVERGENCE
    )
    track_consensus: int = _option(
        0,
        "every K rounds measure how far members are from their mean: at 4,096 scalars, at all of "
        "them where a checkpoint is kept; 0: never",
    )
    checkpoint_epochs: int = _option(0, "keep a checkpoint every K epochs; 0: not by epochs")
    checkpoint_minutes: float = _option(
        10.0, "keep a checkpoint every so many minutes; 0: not by the clock"
    )
    patience: float = _option(5.0, "seconds; every other time of the fault model follows from it")
    seed: int = _option(0, "seed of everything that is drawn in the run")

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that cannot work."""
        if self.method not in METHODS and self.method not in plugins().names:
            _expect_known("method", self.method, (*METHODS, *sorted(plugins().names)))
        for name, known in (
            ("init", INITS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("late", LATE),
            ("transport", TRANSPORTS),
            ("on_divergence", ON_DIVERGENCE),
            ("on_bad_image", ON_BAD_IMAGE),
        ):
            _expect_known(name, getattr(self, name), known)
        of_timm = self.model != MODELS[-1] and bool(re.fullmatch(rf"{TIMM}:[\w.]+", self.model))
        if not of_timm:
            _expect_known("model", self.model, MODELS[:-1])
        if self.weights == TIMM and not of_timm:
            raise UsageError(
                f"--weights is {TIMM}; it has none for --model {self.model}: expected a file, or "
                f"--model {MODELS[-1]}"
            )
        if self.max_delay not in {"auto", "none"} and not (
            self.max_delay.isascii() and self.max_delay.isdecimal() and len(self.max_delay) < 10
        ):
            raise UsageError(
                f"--max-delay is {self.max_delay!r:.40}; expected a number of rounds from 0 on, "
                "auto or none"
            )
        augmentation_of(self.augment, self.data, self.seed, 0)
        for name in ("from_", "until", "head_first", "swa_from"):
            _expect_when(name, getattr(self, name))
        if self.group == 1:
            raise UsageError("--group is 1; expected 0 for one group of all, or at least 2")
        _expect_known("data", self.data, tuple(PRESETS))
        if 0 < self.p < SMALLEST_P:
            raise UsageError(f"--p is {self.p}; expected 0, or {SMALLEST_P} to 1")
        for name, low, high in (
            ("n", 2, 65535),
            ("min_n", 0, self.n),
            ("group", 0, 65535),
            ("patience", 0.1, 86400.0),
            ("checkpoint_epochs", 0, 10**6),
            ("checkpoint_minutes", 0.0, 1e6),
            ("expire", 1, 10**9),
            ("epochs", 1, 10**6),
            ("batch_size", 1, 10**6),
            ("train_limit", 0, 10**12),
            ("image_size", 0, 10**5),
            ("seed", 0, 2**63 - 1),
            ("every", 1, 10**9),
            ("repair", 0, 10**6),
            ("track_consensus", 0, 10**9),
            ("alpha", 0.0, 1.0),
            ("p", 0.0, 1.0),
            ("lr", 0.0, 1e6),
            ("min_lr", 0.0, self.lr),
            ("swa_lr", 0.0, 1e6),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, 1e6),
            ("holdout", 0.0, 0.9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also catches NaN
                raise UsageError(f"--{flag(name)} is {value}; expected {low} to {high}")
        self._check_method()

    def _check_method(self) -> None:
        """Raise UsageError for values that do not go together with the method."""
        if self.method in MEANS and self.max_delay != "0":
            raise UsageError(
                f"--max-delay is {self.max_delay}; --method {self.method} takes means, for which "
                "everyone waits: expected 0, or leave it out"
            )
        if self.repair and self.method not in BY_EPOCHS:
            raise UsageError(
                f"--repair is {self.repair} with --method {self.method}; expected 0, or one of "
                f"{', '.join(BY_EPOCHS)}"
            )
        if self.method in BY_EPOCHS and self.every >= self.epochs:
            raise UsageError(
                f"--every is {self.every} epochs of {self.epochs}, after the last of which no mean "
                f"is taken; --method {self.method} expects fewer"
            )
        if self.group and self.method in MEANS and self.method != "sparta":
            raise UsageError(
                f"--group is {self.group}; --method {self.method} takes means of all, or of pairs: "
                "expected 0"
            )
        if moment(self.from_, self.epochs) >= moment(self.until, self.epochs):
            raise UsageError(
                f"--from {self.from_} is not before --until {self.until} in {self.epochs} epochs"
            )

    @classmethod
    def resolve(cls, **given: Any) -> Self:
        """A configuration from the values `given`, then presets of method and data, then defaults.

        A value of None counts as not given. Raises UsageError.

        >>> config = RunConfig.resolve(n=5, p=0.05)
        >>> config.n, config.p, config.method, config.data
        (5, 0.05, 'wash', 'digits')
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if "n" not in chosen:
            raise UsageError("the number of members is missing; add --n N")
        data = chosen.get("data", "digits")
        _expect_known("data", data, tuple(PRESETS))
        by_method = MEANS.get(chosen.get("method", ""), {})
        by_optimizer = ADAMS.get(chosen.get("optimizer", ""), {})
        return cls(**(PRESETS[data] | by_optimizer | by_method | chosen))

    @classmethod
    def from_file(cls, wire: dict[str, Any]) -> Self:
        """Inverse of `to_wire` for `wire` from a file, which an earlier version may have written.

        Raises UsageError if a field is missing that all versions have: a damaged file must not get
        default values.
        """
        names = {field_.name for field_ in fields(cls)}
        if missing := sorted(names - wire.keys() - LATER.keys()):
            raise UsageError(f"not a whole configuration: {', '.join(missing)} is missing")
        return cls.from_wire(LATER | wire)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Inverse of `to_wire`. Raises UsageError if `wire` is no configuration of this version."""
        kinds: dict[str, set[type]] = {"int": {int}, "float": {int, float}, "str": {str}}
        try:
            for field_ in fields(cls):
                value = wire.get(field_.name, field_.default)
                if type(value) not in kinds[str(field_.type)]:
                    raise TypeError(f"{field_.name} is {value!r:.40}")  # noqa: TRY301
            return cls(**wire)
        except TypeError as error:
            raise UsageError(f"not a configuration of this version: {error}") from None

    def steps_until(self, when: str, steps: int) -> int:
        """How many of a run's `steps` are done at a moment; `when` is as for `--until`."""
        return floor(moment(when, self.epochs) * steps)

    def augmentation(self, member: int) -> Augmentation:
        """The augmentation of the member with number `member`. Never raises: it was validated."""
        return augmentation_of(self.augment, self.data, self.seed, member)

    def flags(self) -> list[str]:
        """The configuration as flags for a coordinator, `washp2p run` or `washp2p simulate`."""
        return [f"--{flag(name)}={value}" for name, value in self.to_wire().items()]

    def to_wire(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


def moment(when: str, epochs: int) -> Fraction:
    """The fraction of a run of so many `epochs` that `--from`, `--until` and the like name.

    >>> moment("0.25", 12), moment("3", 12)
    (Fraction(1, 4), Fraction(1, 4))
    """
    return min(Fraction(1), Fraction(when) if "." in when else Fraction(int(when), epochs))


def plugins() -> EntryPoints:
    """The strategies that other installed packages register as entry points."""
    return entry_points(group="washp2p.strategies")


def flag(name: str) -> str:
    """The name of a field's flag, without dashes before it."""
    return name.rstrip("_").replace("_", "-")


def _expect_when(name: str, value: str) -> None:
    number = value.replace(".", "", 1)
    if not (number.isascii() and number.isdecimal() and len(number) < 10) or (
        "." in value and Fraction(value) > 1
    ):
        raise UsageError(
            f"--{flag(name)} is {value!r:.40}; expected a number of epochs, or a fraction from "
            "0.0 to 1.0"
        )


def _expect_known(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"--{flag(name)} is {value!r}; expected one of {', '.join(known)}")
