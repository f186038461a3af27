"""Configurations: presets, the wire, and one line for each thing that cannot work."""

from __future__ import annotations

import argparse

import pytest

from washp2p.config.config import LATER, RunConfig, options
from washp2p.config.flags import add_options, config_from
from washp2p.config.options import key_of
from washp2p.errors import UsageError


def test_presets_are_the_papers_where_the_data_set_is():
    config = RunConfig.resolve(n=5, data="cifar100")
    method, cifar = config.method, config.training
    assert (method.name, method.p, method.schedule) == ("wash", 0.001, "decreasing")
    assert (cifar.model, cifar.epochs, cifar.batch_size) == ("resnet18", 300, 64)
    assert (cifar.lr, cifar.min_lr, cifar.momentum, cifar.weight_decay) == (0.1, 1e-4, 0.9, 1e-4)
    assert cifar.holdout == 0.02
    config = RunConfig.resolve(n=5, data="imagefolder")
    folder = config.training
    assert (folder.model, folder.epochs, folder.batch_size) == ("resnet50", 90, 256)
    assert config.method.p == 0.05
    assert RunConfig.resolve(n=2).training.holdout == 0.1
    assert RunConfig.resolve(n=2, p=None, data="fashion-mnist").method.p == 0.01


def test_given_values_win_over_presets_and_survive_the_wire():
    config = RunConfig.resolve(n=3, p=0.5, epochs=2)
    assert (config.method.p, config.training.epochs) == (0.5, 2)
    assert RunConfig.from_wire(config.to_wire()) == config
    with pytest.raises(UsageError, match="not a configuration of this version"):
        RunConfig.from_wire(config.to_wire() | {"novelty": 1})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"n": 1}, "--n is 1; expected 2 to 65535"),
        ({"n": 2, "p": 1.5}, "--p is 1.5; expected 0.0 to 1.0"),
        ({"n": 2, "p": float("nan")}, "--p is nan"),
        ({"n": 2, "data": "mnist"}, "--data is 'mnist'; expected one of digits, fashion-mnist"),
        ({"n": 2, "model": "vit"}, "--model is 'vit'; expected one of linear, cnn, resnet18"),
        ({"n": 2, "method": "swarm"}, "--method is 'swarm'; expected one of wash, wash-opt, "),
        ({"n": 2, "schedule": "up"}, "--schedule is 'up'; expected one of decreasing"),
        ({"n": 2, "block": "0"}, "--block is '0'; expected 1 to 999999999, or row"),
        ({"n": 2, "block": "04"}, "--block is '04'; expected 1 to 999999999, or row"),
        ({"n": 2, "block": "rows"}, "--block is 'rows'; expected 1 to 999999999, or row"),
        (
            {"n": 2, "block": "4", "method": "papa"},
            "--block is 4; --method papa does not select at r",
        ),
        ({"n": 2, "epochs": 0}, "--epochs is 0"),
        ({"n": 2, "min_lr": 0.2}, "--min-lr is 0.2; expected 0.0 to 0.07"),
        ({"n": 2, "batch_size": 0}, "--batch-size is 0"),
        ({"n": 2, "seed": -1}, "--seed is -1"),
    ],
)
def test_bad_values_are_named_with_what_was_expected(given, line):
    with pytest.raises(UsageError) as caught:
        RunConfig.resolve(**given)
    assert line in str(caught.value)


def test_every_field_is_a_flag():
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args(["--n", "4", "--weight-decay", "0.01", "--train-limit", "600"])
    config = config_from(options)
    assert (config.n, config.training.weight_decay, config.training.train_limit) == (4, 0.01, 600)
    assert "0.05 for digits" in parser.format_help()


def test_a_file_that_lost_a_field_does_not_mean_its_default():
    whole = RunConfig.resolve(n=3, p=0.5).to_wire()
    assert RunConfig.from_file(whole).method.p == 0.5
    for name in ("p", "seed", "on_divergence"):
        rest = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(UsageError, match=f"not a whole configuration: {name} is missing"):
            RunConfig.from_file(rest)
    before = {key: value for key, value in whole.items() if key not in LATER}
    assert RunConfig.from_file(before) == RunConfig.from_file(whole)  # of an earlier version


def test_files_and_messages_have_options_without_sections():
    """As they were when a configuration had none, so that run folders of before can be read."""
    wire = RunConfig.resolve(n=3, method="wash-opt", from_="0.25", patience=2.0).to_wire()
    assert len(wire) == 42
    assert {"n": 3, "method": "wash-opt", "from_": "0.25", "patience": 2.0}.items() <= wire.items()
    assert not [value for value in wire.values() if not isinstance(value, int | float | str)]


def test_options_changed_by_name_are_checked_anew():
    config = RunConfig.resolve(n=5)
    assert config.with_options(min_n=3).operation.min_n == 3
    with pytest.raises(UsageError, match="--min-n is 6; expected 0 to 5"):
        config.with_options(min_n=6)


def test_no_option_has_the_name_of_another():
    keys = [key_of(each) for _, each in options()]
    assert len(set(keys)) == len(keys)
