"""Data sets, through torchvision's and scikit-learn's classes, and their loaders.

Small images are held as one float32 tensor, so that a batch is one indexing operation. Image
folders are read and transformed file by file. All members hold out the same images. Each member
takes the other images in an order of its own.
"""

from __future__ import annotations

import fcntl
import gzip
import multiprocessing
import os
import shutil
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from washp2p.errors import UsageError
from workers.training.streams import key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from washp2p import RunConfig
    from workers.training.models import Shape

    Loader = DataLoader[Any]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGE_FOLDER_SIZE = 224
EVALUATION_BATCH = 512
_SHARED_BY_ALL = 2**32
"""Stands for "no member in particular" where streams are keyed by member."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A run's data: training images, held-out images, test images."""

    train: Dataset[Any]
    held_out: Dataset[Any]
    test: Dataset[Any]
    shape: Shape
    classes: int
    skipped: Any = None
    """How often an unreadable image was skipped: a shared Value; None if that is an error."""

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Loader:
        """Shuffled batches. Each epoch's order is drawn from `generator`; an incomplete batch is
        dropped.
        """
        if isinstance(self.train, TensorDataset):
            order = RandomSampler(self.train, generator=generator)
            sampler = BatchSampler(order, batch_size, drop_last=True)
            return DataLoader(self.train, sampler=sampler, batch_size=None, generator=generator)
        return DataLoader(
            self.train,
            batch_size,
            shuffle=True,
            drop_last=True,
            generator=generator,
            **_readers(),  # new each pass: it can be begun again
        )

    @staticmethod
    def evaluation_batches(dataset: Dataset[Any]) -> Loader:
        """Batches in order. Their size does not depend on the run."""
        if isinstance(dataset, TensorDataset):
            sampler = BatchSampler(range(len(dataset)), EVALUATION_BATCH, drop_last=False)
            return DataLoader(dataset, sampler=sampler, batch_size=None)
        return DataLoader(dataset, 64, **_readers())

    def first_batches(self, count: int, size: int, device: torch.device) -> list[torch.Tensor]:
        """The inputs of the first training images: at most `count` batches of `size` images.

        The images are always the same, but those of an image folder are cropped and flipped at
        random.
        """
        loader = DataLoader(Subset(self.train, range(min(count * size, _length(self.train)))), size)
        return [inputs.to(device) for inputs, _ in loader]


def load_data(config: RunConfig, folder: Path, *, download: bool) -> Data:
    """The data set that `config` names, read from `folder`; `download` fetches it if missing.

    Raises UsageError if the data cannot be had; the message names the ways to get them.
    """
    if config.training.data == "imagefolder":
        return _image_folder(config, folder)
    images, labels, test_images, test_labels = {
        "digits": _digits,
        "fashion-mnist": _fashion_mnist,
        "cifar10": _cifar,
        "cifar100": _cifar,
    }[config.training.data](config.training.data, folder, download)
    classes = int(labels.max()) + 1
    count = min(config.training.train_limit or len(images), len(images))
    chosen = torch.tensor(_limited(labels.tolist(), count))
    images, labels = images[chosen], labels[chosen]
    mean = images.mean(dim=(0, 2, 3), keepdim=True)
    spread = images.std(dim=(0, 2, 3), keepdim=True)
    kept, held_out = _split(config, count)
    images, test_images = (images - mean) / spread, (test_images - mean) / spread
    size = config.training.image_size
    return Data(
        train=_Images(images[kept], labels[kept], size),
        held_out=_Images(images[held_out], labels[held_out], size),
        test=_Images(test_images, test_labels, size),
        shape=(images.shape[1], size or images.shape[2], size or images.shape[3]),
        classes=classes,
    )


class _Images(TensorDataset):
    """Images and labels. Images are resized to `size` pixels when they are read, unless it is 0."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, size: int) -> None:
        super().__init__(images, labels)
        self._size = size

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, ...]:
        images, labels = (tensor[index] for tensor in self.tensors)
        if self._size:
            whole = images if images.dim() == 4 else images[None]
            sized = interpolate(whole, (self._size, self._size), mode="bilinear", antialias=True)
            images = sized if images.dim() == 4 else sized[0]
        return images, labels


def _readers() -> dict[str, Any]:
    """Options for loaders of files. A member has threads, so the loaders' processes are not
    forked from it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.datasets"])
    return {"num_workers": min(4, os.cpu_count() or 1), "multiprocessing_context": context}


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # all of ours have one


_Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _digits(_name: str, _folder: Path, _download: bool) -> _Arrays:
    """1,797 handwritten digits, 8x8. A fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, random_state=0, stratify=bunch.target
    )
    return images[train], labels[train], images[test], labels[test]


def _fashion_mnist(name: str, folder: Path, download: bool) -> _Arrays:
    from torchvision.datasets import FashionMNIST

    raw = folder / "FashionMNIST" / "raw"
    if DEBIAN_FASHION_MNIST.is_dir():
        _unzip_missing(sorted(DEBIAN_FASHION_MNIST.glob("*.gz")), raw)
    remedy = "install Debian's package dataset-fashion-mnist (found by itself) or add --download"
    train, test = _torchvision(FashionMNIST, name, folder, download, remedy)
    return (
        train.data.unsqueeze(1).float() / 255,
        train.targets.long(),
        test.data.unsqueeze(1).float() / 255,
        test.targets.long(),
    )


def _cifar(name: str, folder: Path, download: bool) -> _Arrays:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    remedy = "add --download, or name its --data-dir"
    train, test = _torchvision(kind, name, folder, download, remedy)
    return (
        torch.from_numpy(train.data).permute(0, 3, 1, 2).float() / 255,
        torch.tensor(train.targets),
        torch.from_numpy(test.data).permute(0, 3, 1, 2).float() / 255,
        torch.tensor(test.targets),
    )


def _torchvision(
    kind: Any,
    name: str,
    folder: Path,
    download: bool,
    remedy: str,
) -> tuple[Any, Any]:
    try:
        with _exclusive(folder) if download else nullcontext():
            return tuple(kind(folder, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        reason = "the download failed" if download else "it is not there"
        detail = f" ({error})" if download else ""
        raise UsageError(f"no {name} in {folder}: {reason}{detail}; {remedy}") from None


def _image_folder(config: RunConfig, folder: Path) -> Data:
    """ImageNet's layout: FOLDER/train/CLASS/*, and FOLDER/val/CLASS/* as the test set."""
    from torchvision.transforms import v2

    from workers.training.images import ImageFiles

    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    size = config.training.image_size or IMAGE_FOLDER_SIZE
    varied = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *finish])
    fixed = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size), *finish])
    skipped = None
    if config.training.on_bad_image == "skip":
        skipped = multiprocessing.get_context("forkserver").Value("q", 0)
    try:
        train, plain, test = (
            ImageFiles(folder / part, transform, skipped)
            for part, transform in (("train", varied), ("train", fixed), ("val", fixed))
        )
    except OSError as error:
        raise UsageError(
            f"no image folder in {folder}: {error}; expected train/CLASS/* and val/CLASS/* there: "
            "name it with --data-dir"
        ) from None
    if train.classes != test.classes:
        only = [
            f"{part} alone has {', '.join(sorted(set(these.classes) - set(those.classes))[:5])}"
            for part, these, those in (("train", train, test), ("val", test, train))
            if set(these.classes) - set(those.classes)
        ]
        raise UsageError(
            f"{folder}/train and {folder}/val have different classes: {'; '.join(only)}; make them "
            "equal"
        )
    chosen = _limited(train.targets, min(config.training.train_limit or len(train), len(train)))
    kept, held_out = _split(config, len(chosen))
    return Data(
        train=Subset(train, [chosen[k] for k in kept]),
        held_out=Subset(plain, [chosen[k] for k in held_out]),
        test=test,
        skipped=skipped,
        shape=(3, size, size),
        classes=len(train.classes),
    )


def _limited(labels: Sequence[int], count: int) -> Sequence[int]:
    """The ascending indices of `count` images: the first ones or, if `labels` are sorted,
    equally many of each class.
    """
    if all(a <= b for a, b in pairwise(labels)):
        seen: Counter[int] = Counter()
        turns = []
        for index, label in enumerate(labels):
            turns.append((seen[label], label, index))
            seen[label] += 1
        return sorted(index for _, _, index in sorted(turns)[:count])
    return range(count)


def _split(config: RunConfig, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """The indices to train on, and those held out: the same on all members of a run."""
    generator = torch.Generator().manual_seed(key(config.seed, _SHARED_BY_ALL, "held out"))
    order = torch.randperm(count, generator=generator).tolist()
    cut = max(1, round(config.training.holdout * count))
    if count - cut < config.training.batch_size:
        raise UsageError(
            f"{count - cut} training images are fewer than a batch of "
            f"{config.training.batch_size}; lower --batch-size or --holdout, or raise --train-limit"
        )
    return sorted(order[cut:]), sorted(order[:cut])


def _unzip_missing(archives: Sequence[Path], raw: Path) -> None:
    missing = [archive for archive in archives if not (raw / archive.stem).exists()]
    if not missing:
        return
    with _exclusive(raw):
        for archive in missing:
            partial = raw / f"{archive.stem}.partial"
            try:
                with gzip.open(archive) as source, partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                partial.replace(raw / archive.stem)
            except OSError as error:
                raise UsageError(f"cannot unzip {archive} to {raw}: {error}; make room") from None


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time fill a data folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}; name another --data-dir"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
