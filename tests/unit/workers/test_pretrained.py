"""Pretrained weights: what is taken from a file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.transforms import v2

from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from workers.studies.papa import pretrained
from workers.training.models import build_model, last_layer
from workers.training.pretrained import by_position, fill, load_pretrained, read_state

SHAPE = (1, 8, 8)


def model(seed, classes=10):
    torch.manual_seed(seed)
    return build_model("cnn", SHAPE, classes)


def heads(*models):
    return [id(parameter) for each in models for parameter in last_layer(each)]


@pytest.mark.parametrize("renamed", [False, True])
def test_all_but_the_last_layer_is_taken_by_name_or_by_position(renamed):
    own, other = model(0), model(1, classes=3)
    fresh = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    state = other.state_dict()
    if renamed:
        state = by_position(own.state_dict(), {f"_{k}": v for k, v in state.items()})
    fill(own, state)
    names = {id(p): name for name, p in own.named_parameters()}
    new = {names[k] for k in heads(own)}
    assert new == {"11.weight", "11.bias"}
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in new else state[name]), name


def test_a_grey_image_is_to_a_colour_convolution_what_it_was():
    colour = build_model("timm:test_resnet", (3, 32, 32), 5).eval()
    grey = build_model("timm:test_resnet", (1, 32, 32), 5).eval()
    fill(grey, colour.state_dict())
    grey.load_state_dict(
        {k: v for k, v in colour.state_dict().items() if k.startswith("fc")}, strict=False
    )
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(images), colour(images.expand(2, 3, 32, 32)))


def test_the_weights_of_efficientnet_lite0_fit_timms_by_position_and_know_a_flower():
    own = build_model("timm:tf_efficientnet_lite0", (3, 224, 224), 1000).eval()
    file = pretrained("timm:tf_efficientnet_lite0")
    state = read_state(Path(file))
    config = RunConfig.resolve(n=2, model="timm:tf_efficientnet_lite0", weights=file)
    load_pretrained(own, config, (3, 224, 224), 1000)
    assert torch.equal(own.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(own.bn2.bias, state["_bn1.bias"])
    head = {"classifier.weight": state["_fc.weight"], "classifier.bias": state["_fc.bias"]}
    own.load_state_dict(head, strict=False)
    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    image = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    with torch.no_grad():
        found = own((image(flower)[None] - 0.5) / 0.5).softmax(dim=1)[0]
    assert int(found.argmax()) == 985  # ImageNet's daisy, the only flower of such petals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "0.weight": torch.zeros(16, 1, 5, 5)}, r"0.weight is \(16, 1, 5"),
        (lambda state: {k: v for k, v in state.items() if k != "3.bias"}, "it has no 3.bias"),
        (lambda state: {"x": state["0.weight"]}, "it has 1 tensors by other names; expected 10"),
        (lambda state: {f"x.{k}": state[k] for k in list(state)[::-1]}, "it has 10 tensors by"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, change, words):
    path = tmp_path / "weights.pth"
    torch.save(change(model(1).state_dict()), path)
    own = model(0)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    config = RunConfig.resolve(n=2, weights=str(path))
    with pytest.raises(UsageError, match=f"does not fit --model cnn: {words}"):
        load_pretrained(own, config, SHAPE, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_safetensors_keep_names_alone(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = model(1).state_dict()
    config = RunConfig.resolve(n=2, weights=str(path))
    save_file(state, path)
    own = model(0)
    load_pretrained(own, config, SHAPE, 10)
    assert torch.equal(own[0].weight, state["0.weight"])
    save_file({f"_{name}": value for name, value in state.items()}, path)
    with pytest.raises(UsageError, match=r"it has no 0\.weight"):
        load_pretrained(own, config, SHAPE, 10)


class Code(nn.Module):
    """Something to unpickle."""


@pytest.mark.parametrize("content", [b"", b"no weights", None, "module"])
def test_files_that_are_no_weights_are_refused_and_run_no_code(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "module":
        torch.save(Code(), path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="expected a state dict"):
        read_state(path)
    torch.save([1], path)
    with pytest.raises(UsageError, match="is no state dict"):
        read_state(path)
    state = {"a": torch.ones(2)}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert torch.equal(read_state(path)["a"], state["a"])


def test_what_timm_does_not_have_is_named():
    with pytest.raises(UsageError, match=r"timm:nothing.*expected one of timm.list_models"):
        build_model("timm:nothing", SHAPE, 10)
    with pytest.raises(UsageError, match=r"takes images of 224x224.* add --image-size 224"):
        build_model("timm:convit_tiny", (3, 32, 32), 10)
    with pytest.raises(UsageError, match="expected one of linear"):
        RunConfig.resolve(n=2, model="timm:hf-hub:someone/something")
    with pytest.raises(UsageError, match="it has none for --model cnn"):
        RunConfig.resolve(n=2, weights="timm")
    with pytest.raises(UsageError, match="--model is 'timm:NAME'"):
        RunConfig.resolve(n=2, model="timm:NAME")
