"""The sections of a run's configuration. Each checks its own fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from washp2p.config.augmentation import EXPECTED
from washp2p.config.options import check, expect_known, option
from washp2p.config.presets import BY_EPOCHS, MEANS, PRESETS
from washp2p.errors import UsageError
from washp2p.protocol.rates import SCHEDULES

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

METHODS = ("wash", "wash-opt", "sparta", "papa", "papa-all", "dart", "papa-2", "none")
SELECTIVE = ("wash", "wash-opt", "sparta")
"""Methods that exchange a random part of the parameters."""
MODELS = ("linear", "cnn", "resnet18", "vgg16", "resnet50", "timm:NAME")
TIMM = "timm"
"""The library timm as the source of a model (timm:efficientnet_lite0) or of its weights."""
SMALLEST_P = 1e-15


def plugins() -> EntryPoints:
    """The strategies that other installed packages register as entry points."""
    return entry_points(group="washp2p.strategies")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The method: what members exchange in a round, and when they do."""

    name: str = option("wash", "what members do with a round (docs/methods.md)", key="method")
    p: float = option(0.01, "base shuffling probability (WASH, equation 3)", limits=(0.0, 1.0))
    schedule: str = option(
        "decreasing",
        "how the probability depends on the layer's depth (WASH, equation 6)",
        choices=SCHEDULES,
    )
    last: str = option(
        "", "name of the module that is the last layer; default: the module registered last"
    )
    group: int = option(
        0, "exchange within random groups of at most GROUP members; 0: one group", limits=(0, 65535)
    )
    block: str = option(
        "1",
        "select and shuffle runs of BLOCK consecutive scalars of a parameter as one; row: the "
        "scalars of one index of its first dimension, such as one filter",
    )
    every: int = option(
        1,
        "steps from one exchange to the next; for papa-all, dart and papa-2: epochs",
        limits=(1, 10**9),
    )
    from_: str = option(
        "0",
        "exchange only after this epoch (100) or this fraction of the run (0.25)",
        moment=True,
    )
    until: str = option(
        "1.0",
        "exchange only up to the end of this epoch (100) or fraction (0.75); 1 is an epoch, 1.0 "
        "the whole run",
        moment=True,
    )
    alpha: float = option(
        0.99, "papa: share of a member that a pull to the mean keeps (eq. 1)", limits=(0.0, 1.0)
    )
    repair: int = option(
        0,
        "papa-all, papa-2, dart: REPAIR each mean with this many batches (5 in the paper); 0: do "
        "not",
        limits=(0, 10**6),
    )

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that cannot work."""
        if self.name not in METHODS and self.name not in plugins().names:
            expect_known("method", self.name, (*METHODS, *sorted(plugins().names)))
        check(self)
        if self.group == 1:
            raise UsageError("--group is 1; expected 0 for one group of all, or at least 2")
        if self.block != "row" and not re.fullmatch("[1-9][0-9]{0,8}", self.block):
            raise UsageError(f"--block is {self.block!r:.40}; expected 1 to 999999999, or row")
        if self.block != "1" and self.name in METHODS and self.name not in SELECTIVE:
            raise UsageError(
                f"--block is {self.block}; --method {self.name} does not select at random: "
                f"expected --block 1, or --method {', '.join(SELECTIVE[:-1])} or {SELECTIVE[-1]}"
            )
        if 0 < self.p < SMALLEST_P:
            raise UsageError(f"--p is {self.p}; expected 0, or {SMALLEST_P} to 1")
        if self.repair and self.name not in BY_EPOCHS:
            raise UsageError(
                f"--repair is {self.repair} with --method {self.name}; expected 0, or one of "
                f"{', '.join(BY_EPOCHS)}"
            )
        if self.group and self.name in MEANS and self.name != "sparta":
            raise UsageError(
                f"--group is {self.group}; --method {self.name} takes means of all, or of pairs: "
                "expected 0"
            )


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """How values travel and when they are applied."""

    max_delay: str = option(
        "auto", "rounds by which values may be late: a number (0: lockstep), auto or none"
    )
    late: str = option(
        "overwrite", "how late values are applied", choices=("overwrite", "difference")
    )
    expire: int = option(
        64, "rounds after which --max-delay none gives up values", limits=(1, 10**9)
    )
    transport: str = option(
        "auto",
        "what carries values: auto takes the nearest transport for each pair of members, torch "
        "takes torch.distributed wherever both are on one machine, tcp takes TCP only",
        choices=("auto", "torch", "tcp"),
    )

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that cannot work."""
        check(self)
        rounds = self.max_delay
        number = rounds.isascii() and rounds.isdecimal() and len(rounds) < 10
        if rounds not in {"auto", "none"} and not number:
            raise UsageError(
                f"--max-delay is {rounds!r:.40}; expected a number of rounds from 0 on, auto or "
                "none"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the built-in trainer trains, and how."""

    data: str = option("digits", "data set", choices=tuple(PRESETS))
    train_limit: int = option(
        0, "use only the first TRAIN_LIMIT training images; 0: all", limits=(0, 10**12)
    )
    holdout: float = option(
        0.02, "share of the training data held out for GreedySoup", limits=(0.0, 0.9)
    )
    on_bad_image: str = option(
        "stop",
        "what to do with an image file that cannot be read",
        choices=("stop", "skip"),
    )
    image_size: int = option(
        0,
        "resize images to this many pixels in height and width; 0: leave them, 224 in image "
        "folders",
        limits=(0, 10**5),
    )
    augment: str = option(
        "none",
        "augmentation by member, besides CIFAR's crops and flips: taken in turn, or drawn "
        "(hetero): " + EXPECTED,
    )
    model: str = option("cnn", "architecture; timm has hundreds")
    weights: str = option(
        "",
        "pretrained weights, for all layers but the last: a file on every worker's machine, or "
        "timm for timm's own download",
    )
    head_first: str = option(
        "0", "train only the last layer up to the end of this epoch or fraction", moment=True
    )
    init: str = option(
        "same",
        "initial parameters: the first member's (same), or each member's own (different)",
        choices=("same", "different"),
    )
    epochs: int = option(12, "passes over the training data", limits=(1, 10**6))
    batch_size: int = option(64, "images per step", limits=(1, 10**6))
    optimizer: str = option("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    lr: float = option(0.1, "learning rate at the first step", limits=(0.0, 1e6))
    min_lr: float = option(1e-4, "learning rate after the last step (cosine schedule)")
    momentum: float = option(0.9, "momentum of SGD", limits=(0.0, 1.0))
    weight_decay: float = option(1e-4, "weight decay", limits=(0.0, 1e6))
    swa_from: str = option(
        "1.0",
        "after this epoch or fraction also average each member's models over epochs (SWA); 1.0: "
        "do not",
        moment=True,
    )
    swa_lr: float = option(0.05, "constant learning rate during SWA", limits=(0.0, 1e6))

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that cannot work."""
        check(self)
        if not 0.0 <= self.min_lr <= self.lr:
            raise UsageError(f"--min-lr is {self.min_lr}; expected 0.0 to {self.lr}")
        of_timm = self.model != MODELS[-1] and bool(re.fullmatch(rf"{TIMM}:[\w.]+", self.model))
        if not of_timm:
            expect_known("model", self.model, MODELS[:-1])
        if self.weights == TIMM and not of_timm:
            raise UsageError(
                f"--weights is {TIMM}; it has none for --model {self.model}: expected a file, or "
                f"--model {MODELS[-1]}"
            )


@dataclass(frozen=True, kw_only=True)
class OperationConfig:
    """How the run is operated: faults, checkpoints, measurements."""

    min_n: int = option(
        0, "number of members with which the run may start; others join later; 0: all n"
    )
    patience: float = option(
        5.0,
        "seconds; all waiting times follow from it (docs/reliability.md)",
        limits=(0.1, 86400.0),
    )
    on_divergence: str = option(
        "reset",
        "what to do with a member that sends values that are not finite",
        choices=("reset", "drop", "stop"),
    )
    checkpoint_epochs: int = option(
        0, "save a checkpoint every CHECKPOINT_EPOCHS epochs; 0: not by epochs", limits=(0, 10**6)
    )
    checkpoint_minutes: float = option(
        10.0,
        "save a checkpoint every CHECKPOINT_MINUTES minutes; 0: not by the clock",
        limits=(0.0, 1e6),
    )
    track_consensus: int = option(
        0,
        "measure the distance to consensus every TRACK_CONSENSUS rounds, at 4,096 scalars, and at "
        "all of them where a checkpoint is saved; 0: never",
        limits=(0, 10**9),
    )

    def __post_init__(self) -> None:
        """Raise UsageError on the first value that cannot work."""
        check(self)
