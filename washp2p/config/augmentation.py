"""The augmentation and regularisation of each member (PAPA, section 4.1). Does no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from math import nan
from typing import Any

from washp2p.errors import UsageError

SETS: dict[str, tuple[float, ...]] = {
    "mixup": (0.0, 0.5, 1.0),
    "smoothing": (0.0, 0.05, 0.1),
    "cutmix": (0.0, 0.5, 1.0),
    "erasing": (0.0, 0.15, 0.35),
}
IMAGENET_SETS: dict[str, tuple[float, ...]] = {
    "mixup": (0.0, 0.2),
    "smoothing": (0.0, 0.1),
    "cutmix": (0.0, 1.0),
    "erasing": (0.0, 0.35),
}
CROP = 4.0
"""Pixels by which CIFAR's images are padded to be cropped."""
RANGES = {
    "mixup": (0.01, 100.0),
    "smoothing": (0.0, 1.0),
    "cutmix": (0.01, 100.0),
    "erasing": (0.0, 1.0),
    "crop": (1.0, 64.0),
}
EXPECTED = "none, hetero, or NAME=VALUE:VALUE...,... of mixup, smoothing, cutmix, erasing, crop"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How one member changes its batches. A value of 0 turns that part off.

    `mixup` and `cutmix` are alphas of a beta distribution. With both, each batch gets one of the
    two. `smoothing` is the share of the target that is spread over all classes. `erasing` is the
    probability of erasing a block of an image. `crop` is the padding in pixels before a random crop
    back to the original size. A random horizontal flip comes with the crop.
    """

    mixup: float = 0.0
    smoothing: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    crop: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """The fields as plain values, by name."""
        return asdict(self)


def augmentation_of(augment: str, data: str, seed: int, member: int) -> Augmentation:
    """The augmentation of one member under `--augment`. Raises UsageError if that is not valid.

    `augment` is the flag's value. `none` is no augmentation. `hetero` draws each value from the
    paper's sets; the draw depends on the run's `seed` and on `member` alone. Otherwise the flag
    has lists of values, which members take in turn. CIFAR's images are cropped and flipped
    unless a list says otherwise, as in the papers' homogeneous populations.

    >>> augmentation_of("mixup=0:0.5,crop=4", "digits", seed=0, member=3)
    Augmentation(mixup=0.5, smoothing=0.0, cutmix=0.0, erasing=0.0, crop=4.0)
    """
    always = {"crop": CROP} if data.startswith("cifar") else {}
    if augment == "none":
        return Augmentation(**always)
    if augment == "hetero":
        sets = IMAGENET_SETS if data == "imagefolder" else SETS
        drawn = {name: _draw(values, seed, member, name) for name, values in sets.items()}
        return Augmentation(**drawn, **always)
    chosen: dict[str, float] = {}
    for part in augment.split(","):
        name, _, values = part.partition("=")
        if name not in RANGES or name in chosen:
            raise UsageError(f"--augment has {part!r:.40}; expected each once, of {EXPECTED}")
        least, most = RANGES[name]
        try:
            listed = [float(value) for value in values.split(":")]
        except ValueError:
            listed = [nan]
        if not all(v == 0 or least <= v <= most for v in listed):
            raise UsageError(f"--augment has {part!r:.40}; expected 0, or {least} to {most}")
        if name == "crop" and any(v % 1 for v in listed):
            raise UsageError(f"--augment has {part!r:.40}; expected whole pixels")
        chosen[name] = listed[member % len(listed)]
    return Augmentation(**always | chosen)


def _draw(values: tuple[float, ...], seed: int, member: int, name: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{member}:{name}".encode(), digest_size=8).digest()
    return values[int.from_bytes(digest, "little") % len(values)]
