"""Draws of a heterogeneous population, and what they do to batches."""

from __future__ import annotations

import pytest
import torch

from washp2p.config.augmentation import IMAGENET_SETS, SETS, Augmentation, augmentation_of
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from workers.training.augment import Augment


def test_draws_are_from_the_papers_sets_and_depend_on_seed_and_member_alone():
    for data, sets in (("cifar100", SETS), ("imagefolder", IMAGENET_SETS)):
        drawn = [augmentation_of("hetero", data, 1, member) for member in range(60)]
        for name, values in sets.items():
            assert {getattr(one, name) for one in drawn} == set(values)
        assert drawn == [augmentation_of("hetero", data, 1, member) for member in range(60)]
        assert drawn != [augmentation_of("hetero", data, 2, member) for member in range(60)]
    for augment in ("hetero", "none", "mixup=1"):
        assert augmentation_of(augment, "cifar10", 0, 0).crop == 4
    assert augmentation_of("crop=0", "cifar10", 0, 0).crop == 0
    assert augmentation_of("hetero", "digits", 0, 0).crop == 0


def test_each_value_of_a_set_is_drawn_alike():
    drawn = [augmentation_of("hetero", "digits", seed, 0).mixup for seed in range(3000)]
    for value in SETS["mixup"]:
        assert drawn.count(value) == pytest.approx(1000, abs=130)


def test_lists_go_round():
    config = RunConfig.resolve(n=4, augment="mixup=0.2:0.4,erasing=0.1:0:0.3,crop=2")
    found = [config.augmentation(member) for member in range(4)]
    assert [one.mixup for one in found] == [0.2, 0.4, 0.2, 0.4]
    assert [one.erasing for one in found] == [0.1, 0.0, 0.3, 0.1]
    assert {one.crop for one in found} == {2.0}
    assert RunConfig.resolve(n=2).augmentation(0) == Augmentation()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hetro",
        "mixup",
        "mixup=",
        "mixup=-1",
        "mixup=x",
        "cutout=1",
        "erasing=1.1",
        "mixup=nan",
        "mixup=1,mixup=0",
        "crop=0.5",
        "crop=2.7",
        "mixup=1e-9",
    ],
)
def test_what_is_no_augmentation_is_named(text):
    with pytest.raises(UsageError, match="--augment has"):
        RunConfig.resolve(n=2, augment=text)


def batch(count=8, side=6):
    torch.manual_seed(0)
    return torch.rand(count, 3, side, side), torch.arange(count) % 4


def test_nothing_leaves_a_batch_as_it_is():
    inputs, labels = batch()
    same, targets = Augment(Augmentation(), (3, 6, 6), 4)(inputs, labels)
    assert same is inputs
    assert targets is labels


def test_mixed_batches_are_mixtures_with_shares_of_the_labels():
    inputs, labels = batch()
    for chosen in (
        Augmentation(mixup=1.0),
        Augmentation(cutmix=1.0),
        Augmentation(mixup=1, cutmix=1),
    ):
        mixed, targets = Augment(chosen, (3, 6, 6), 4)(inputs, labels)
        assert mixed.shape == inputs.shape
        assert targets.shape == (8, 4)
        assert targets.sum(1).tolist() == pytest.approx([1.0] * 8)
        assert not torch.equal(mixed, inputs)


def test_images_are_cropped_flipped_and_erased_each_by_itself():
    inputs, labels = batch(count=64)
    cropped, targets = Augment(Augmentation(crop=1), (3, 6, 6), 4)(inputs, labels)
    assert targets is labels
    padded = torch.nn.functional.pad(inputs, (1, 1, 1, 1))
    seen = set()
    for image, whole in zip(cropped, padded, strict=True):
        places = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            for crop in [whole[:, top : top + 6, left : left + 6]]
            if torch.equal(image, crop.flip(2) if flip else crop)
        ]
        assert places
        seen.add(places[0])
    assert len(seen) > 9
    erased, _ = Augment(Augmentation(erasing=0.5), (3, 6, 6), 4)(inputs, labels)
    touched = [not torch.equal(a, b) for a, b in zip(erased, inputs, strict=True)]
    assert 16 <= sum(touched) <= 48


def test_it_draws_from_the_global_stream_alone():
    inputs, labels = batch()
    augment = Augment(Augmentation(mixup=1, cutmix=1, erasing=0.5, crop=1), (3, 6, 6), 4)
    torch.manual_seed(7)
    first = augment(inputs, labels)
    torch.manual_seed(7)
    again = augment(inputs, labels)
    assert all(map(torch.equal, first, again))
