"""Defaults that depend on the method, the optimizer or the data set."""

from __future__ import annotations

from typing import Any

MEANS: dict[str, dict[str, Any]] = {
    "sparta": {"max_delay": "0", "schedule": "constant"},
    "papa": {"max_delay": "0", "init": "different", "every": 10},
    "papa-all": {"max_delay": "0", "init": "different", "every": 5},
    "dart": {"max_delay": "0", "every": 5, "from_": "0.5"},
    "papa-2": {"max_delay": "0", "init": "different", "every": 5},
}
"""Methods that take means, in lockstep only, with defaults other than the fields' own."""
BY_EPOCHS = ("papa-all", "dart", "papa-2")
"""Methods whose `every` counts epochs instead of steps."""
ADAMS: dict[str, dict[str, Any]] = {
    name: {"lr": 0.002, "min_lr": 1e-6, "swa_lr": 0.001} for name in ("adam", "adamw")
}
"""Defaults that differ by optimizer, for any data set."""

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"p": 0.05, "lr": 0.07, "batch_size": 32, "holdout": 0.1},
    "fashion-mnist": {"p": 0.01, "lr": 0.05, "batch_size": 32},
    "cifar10": {"model": "resnet18", "epochs": 300, "p": 0.001},
    "cifar100": {"model": "resnet18", "epochs": 300, "p": 0.001},
    "imagefolder": {"model": "resnet50", "epochs": 90, "p": 0.05, "batch_size": 256},
}
"""Defaults other than the fields' own, by data set. CIFAR and ImageNet are as in the paper.

Short training needs a larger p (the paper's phase transition, figure 5a). For the small CNN,
which has no normalisation layers, it also needs smaller and more steps than the paper's recipe.
"""
