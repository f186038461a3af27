"""Data sets: sizes, splits, orders; sets as small as a test can make them."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import workers.training.data
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from workers.training.data import load_data
from workers.training.streams import Streams

GENERATOR = torch.Generator().manual_seed(0)


def labels_of(loader):
    return torch.cat([labels for _, labels in loader])


def test_digits_are_split_once_and_for_all_members(tmp_path):
    config = RunConfig.resolve(n=2)
    data = load_data(config, tmp_path, download=False)
    assert (len(data.train), len(data.held_out), len(data.test)) == (1293, 144, 360)
    assert (data.shape, data.classes) == ((1, 8, 8), 10)
    again = load_data(config, tmp_path, download=False)
    other = load_data(RunConfig.resolve(n=2, seed=1), tmp_path, download=False)
    assert torch.equal(data.held_out.tensors[0], again.held_out.tensors[0])
    assert not torch.equal(data.held_out.tensors[1], other.held_out.tensors[1])
    assert torch.equal(data.test.tensors[1], other.test.tensors[1])
    assert not list(tmp_path.iterdir())


def test_members_see_the_same_images_in_orders_of_their_own(tmp_path):
    data = load_data(RunConfig.resolve(n=2, train_limit=200), tmp_path, download=False)
    orders = []
    for member in (0, 1, 0):
        batches = data.training_batches(20, Streams(5, member).loader)
        orders.append([labels_of(batches), labels_of(batches)])
    assert len(orders[0][0]) == 180
    assert torch.equal(orders[0][0], orders[2][0])
    assert torch.equal(orders[0][1], orders[2][1])
    assert not torch.equal(orders[0][0], orders[1][0])
    assert not torch.equal(orders[0][0], orders[0][1])
    assert torch.equal(orders[0][0].sort()[0], orders[1][0].sort()[0])


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="fewer than a batch of 64"):
        load_data(RunConfig.resolve(n=2, train_limit=60, batch_size=64), tmp_path, download=False)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_fashion_mnist_is_found_in_debians_package(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 40)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(package / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(package / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    config = RunConfig.resolve(n=2, data="fashion-mnist", train_limit=200)
    monkeypatch.setattr(workers.training.data, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(UsageError, match=r"dataset-fashion-mnist .* --download"):
        load_data(config, tmp_path / "data", download=False)
    monkeypatch.setattr(workers.training.data, "DEBIAN_FASHION_MNIST", package)
    data = load_data(config, tmp_path / "data", download=False)
    assert (len(data.train), len(data.held_out), len(data.test)) == (196, 4, 40)
    assert data.shape == (1, 28, 28)


def test_an_image_folder(tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(6):
                image = Image.new("RGB", (40, 30), (100 * number, 20 * k, 0))
                image.save(tmp_path / part / name / f"{k}.png")
    config = RunConfig.resolve(n=2, data="imagefolder", batch_size=4, model="resnet18")
    data = load_data(config, tmp_path, download=False)
    assert (len(data.train), len(data.held_out), len(data.test)) == (11, 1, 12)
    assert (data.shape, data.classes) == ((3, 224, 224), 2)
    images, labels = next(iter(data.training_batches(4, torch.Generator())))
    assert images.shape == (4, 3, 224, 224)
    assert set(labels.tolist()) <= {0, 1}
    images, _ = next(iter(data.evaluation_batches(data.test)))
    assert images.shape == (12, 3, 224, 224)
    (tmp_path / "val" / "eel").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "eel" / "0.png")
    with pytest.raises(UsageError, match="different classes: val alone has eel"):
        load_data(config, tmp_path, download=False)


@pytest.fixture
def folder(tmp_path):
    """An image folder of four classes, ten images each, two of which cannot be read."""
    for part in ("train", "val"):
        for name in "abcd":
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(10):
                Image.new("RGB", (8, 8)).save(tmp_path / part / name / f"{k}.png")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"what another system leaves")
    return tmp_path


def loaded(folder, **options):
    config = RunConfig.resolve(
        n=2, data="imagefolder", image_size=8, batch_size=4, holdout=0.05, model="cnn", **options
    )
    return load_data(config, folder, download=False)


def test_hidden_folders_and_files_are_no_images(folder):
    data = loaded(folder)
    assert data.classes == 4
    assert len(data.train) + len(data.held_out) == 40


def test_a_limit_on_sorted_images_takes_of_all_classes(folder):
    data = loaded(folder, train_limit=14)
    assert len(data.train) + len(data.held_out) == 14
    labels = [data.train.dataset.targets[k] for k in data.train.indices]
    labels += [data.held_out.dataset.targets[k] for k in data.held_out.indices]
    assert sorted(labels.count(label) for label in range(4)) == [3, 3, 4, 4]


def test_an_image_that_cannot_be_read_is_named_or_skipped_and_counted(folder):
    bad = folder / "train" / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:30])
    for through in (lambda d: list(d.train), lambda d: list(d.training_batches(4, GENERATOR))):
        with pytest.raises(UsageError, match=f"^cannot read the image {bad}: [^\n]*$"):
            through(loaded(folder))
    data = loaded(folder, on_bad_image="skip")
    batches = list(data.training_batches(4, GENERATOR))
    assert len(batches) == 9
    assert data.skipped.value == 1


def test_images_that_are_not_sorted_are_limited_as_before(tmp_path):
    config = RunConfig.resolve(n=2, train_limit=200)
    whole = load_data(RunConfig.resolve(n=2), tmp_path, download=False)
    data = load_data(config, tmp_path, download=False)
    assert len(data.train) + len(data.held_out) == 200
    assert len(whole.train) > 1000


def test_images_are_made_as_large_as_is_wanted(tmp_path):
    plain, large = (
        load_data(RunConfig.resolve(n=2, image_size=size), tmp_path, download=False)
        for size in (0, 24)
    )
    assert (plain.shape, large.shape) == ((1, 8, 8), (1, 24, 24))
    (small, labels), (images, same) = (
        next(iter(data.training_batches(5, torch.Generator().manual_seed(1))))
        for data in (plain, large)
    )
    assert torch.equal(labels, same)
    assert images.shape == (5, 1, 24, 24)
    torch.testing.assert_close(images[:, :, 1::3, 1::3], small)  # their middles are the old pixels
    (first,) = large.first_batches(1, 4, torch.device("cpu"))
    assert first.shape == (4, 1, 24, 24)
