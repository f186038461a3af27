"""Applies an `Augmentation` to batches, with torchvision's transforms.

The transforms draw from torch's global generator. While a member's streams are active, that
generator is the member's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchvision.transforms import v2

if TYPE_CHECKING:
    from washp2p.config.augmentation import Augmentation
    from workers.training.models import Shape


class Augment:
    """Augments batches of one member, as `chosen` says.

    A batch has inputs (images x channels x height x width) and labels (int64).
    """

    def __init__(self, chosen: Augmentation, shape: Shape, classes: int) -> None:
        each: list[Any] = []
        if chosen.crop:
            each.append(v2.RandomCrop(shape[1:], padding=int(chosen.crop)))
            each.append(v2.RandomHorizontalFlip())
        if chosen.erasing:
            each.append(v2.RandomErasing(p=chosen.erasing))
        mixes: list[Any] = []
        if chosen.mixup:
            mixes.append(v2.MixUp(alpha=float(chosen.mixup), num_classes=classes))
        if chosen.cutmix:
            mixes.append(v2.CutMix(alpha=float(chosen.cutmix), num_classes=classes))
        self._each = v2.Compose(each) if each else None
        self._mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented batch. Mixing turns labels into class probabilities (images x classes)."""
        if self._each is not None:
            inputs = torch.stack([self._each(image) for image in inputs])
        if self._mix is not None:
            inputs, targets = self._mix(inputs, targets)
        return inputs, targets
