"""Joining leaves the model as its owner knew it, for whoever saves, copies or shares it."""

from __future__ import annotations

import copy
import io
import pickle
import re
import time
import timeit
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from washp2p.errors import UsageError
from washp2p.model.device_copies import HostCopies
from washp2p.model.store import Store


def model(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))
    return net.to(dtype).to(memory_format=torch.channels_last)


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def everywhere(store):
    return torch.arange(store.layout.size).numpy()


def at(*places):
    return HostCopies().upload(torch.tensor(places).numpy())


def flags_of(pointer):
    """What the kernel knows of the memory at an address."""
    begin, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(text, 16) for text in found.groups())
            inside = begin <= pointer < end
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux with large pages"
)
def test_a_large_model_lies_in_large_pages():
    net = nn.Linear(1000, 1100)
    store = Store(net, torch.optim.Adam(net.parameters()), ("exp_avg",))
    for vector in store._vectors:
        assert "hg" in flags_of(vector.data_ptr() + (2 << 20))
        assert vector.dtype == torch.float32
    assert not store._vectors[1].any()
    small = Store(model(), sgd(model()))
    assert "hg" not in flags_of(small.vector.data_ptr())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_parameter_has_a_storage_of_its_own_size_in_one_memory(dtype, tmp_path):
    net, plain = model(dtype), model(dtype)
    store = Store(net, sgd(net))
    begin = store.vector.data_ptr()
    for parameter, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.stride() == other.stride()
        assert parameter.untyped_storage().nbytes() == other.untyped_storage().nbytes()
        assert parameter.storage_offset() == 0
        assert 0 <= parameter.data_ptr() - begin < store.vector.nbytes
    assert len({p.untyped_storage().data_ptr() for p in net.parameters()}) == 6
    for name, value in store.values().items():  # the vector and the parameter are one memory
        value.add_(1)
        now, was = net.get_parameter(name), plain.get_parameter(name)
        assert torch.equal(now, was + 1), name
    save_model(net, str(tmp_path / "m.safetensors"))
    saved = load_file(tmp_path / "m.safetensors")
    assert saved.keys() == plain.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in net.state_dict().items())


def test_what_is_saved_of_a_part_is_that_part():
    net, plain = model(), model()
    Store(net, sgd(net))
    sizes = []
    for one in (net, plain):
        file = io.BytesIO()
        torch.save(one[3].state_dict(), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] == sizes[1]
    assert len(pickle.dumps(net[3])) < 4000
    assert torch.equal(copy.deepcopy(net)[3].weight, plain[3].weight)


def test_frameworks_save_all_parameters(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    hub = pytest.importorskip("huggingface_hub")
    net = model()
    Store(net, sgd(net))
    accelerate.Accelerator(cpu=True).save_model(net, str(tmp_path / "a"))
    assert load_file(tmp_path / "a" / "model.safetensors").keys() == net.state_dict().keys()
    (tmp_path / "b").mkdir()
    hub.save_torch_state_dict(net.state_dict(), str(tmp_path / "b"))
    assert load_file(tmp_path / "b" / "model.safetensors").keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "3.weight"])
def test_memory_given_by_assignment_is_taken_in_with_its_values(name):
    net = model()
    store = Store(net, sgd(net))
    parameter = net.get_parameter(name)
    parameter.data = parameter.detach().clone().mul(3)
    values = parameter.detach().clone()
    store.refresh()
    entry = next(e for e in store.layout.entries if e.name == name)
    assert torch.equal(parameter, values)
    assert torch.equal(store.values()[name].as_strided(entry.shape, entry.stride), values)
    store.scatter(at(entry.offset), [torch.tensor([7.0])])
    assert parameter.detach().reshape(-1)[0] == 7 or (parameter == 7).sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.detach()[:2].clone(), r"2.weight is \[2, 16\] float32 on cpu now; it was"),
        (lambda p: p.detach().double(), "2.weight is .* float64 on cpu now"),
        (lambda p: p.detach()[:2], r"2.weight is \[2, 16\]"),  # at the same address
    ],
)
def test_memory_of_another_kind_is_named(change, words):
    net = model()
    store = Store(net, sgd(net))
    net[2].weight.data = change(net[2].weight)
    with pytest.raises(UsageError, match=words):
        store.refresh()


def test_a_replaced_layer_is_named():
    net = model()
    store = Store(net, sgd(net))
    net[3] = nn.Linear(5, 2)
    net[2].weight = nn.Parameter(net[2].weight.detach().clone())
    with pytest.raises(
        UsageError, match=r"2.weight of the model is another object, of Parameter, than"
    ):
        store.refresh()


def test_a_transposed_parameter_keeps_its_values():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    store = Store(net, sgd(net))
    net[0].weight.data = net[0].weight.detach().t()  # same pointer and size, other strides
    values = net[0].weight.detach().clone()
    store.refresh()
    assert torch.equal(net[0].weight, values)
    assert torch.equal(store.values()["0.weight"].view(4, 4), values)


def test_shared_memory_stays_shared_and_others_see_what_rounds_write(caplog):
    net = model().share_memory()
    seen = net[2].weight.detach()  # as another process maps it
    pointer = seen.data_ptr()
    store = Store(net, sgd(net))
    assert "in memory that other processes share" in caplog.text
    store.refresh()
    entry = next(e for e in store.layout.entries if e.name == "2.weight")
    store.scatter(at(entry.offset), [torch.tensor([9.0])])
    assert net[2].weight.is_shared()
    assert net[2].weight.data_ptr() == pointer
    assert seen.reshape(-1)[0] == 9
    with torch.no_grad():
        net[2].weight.mul_(2)
    store.refresh()
    assert store.values()["2.weight"][0] == 18
    store.release()
    assert net[2].weight.data_ptr() == pointer


def test_memory_that_is_shared_later_is_followed(caplog):
    net = model()
    store = Store(net, sgd(net))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.share_memory()
    store.refresh()
    assert "was moved to memory that other processes share" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    store.scatter(at(0), [torch.tensor([5.0])])
    assert net[0].weight.is_shared()
    assert (net[0].weight == 5).sum() == 1


def test_parameters_in_the_same_memory_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = nn.Parameter(net[0].weight.detach())
    with pytest.raises(UsageError, match=r"0.weight and 1.weight are two Parameters in the same"):
        Store(net, sgd(net))
    views = nn.ParameterList(torch.zeros(10).split(5))  # side by side is no sharing
    assert Store(views, sgd(views)).layout.values == 10


def test_afterwards_the_model_is_its_owners_alone():
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    store = Store(net, optimizer, ("exp_avg", "exp_avg_sq"))
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    store.refresh()
    assert optimizer.state[net[2].weight]["exp_avg"].untyped_storage().nbytes() == 16 * 5 * 4
    values = {name: value.clone() for name, value in net.state_dict().items()}
    average = optimizer.state[net[2].weight]["exp_avg"].clone()
    strides = [p.stride() for p in net.parameters()]
    store.release()
    begin, end = store.vector.data_ptr(), store.vector.data_ptr() + store.vector.nbytes
    assert not [p for p in net.parameters() if begin <= p.data_ptr() < end]
    store.vector.zero_()
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert torch.equal(optimizer.state[net[2].weight]["exp_avg"], average)
    assert [p.stride() for p in net.parameters()] == strides


def test_optimizer_state_that_moves_is_taken_in_again():
    net = model()
    optimizer = sgd(net)
    store = Store(net, optimizer, ("momentum_buffer",))
    for _ in range(2):
        net(torch.randn(2, 3, 4, 4)).sum().backward()
        optimizer.step()
        store.refresh()
    state = optimizer.state[net[0].weight]  # not the last one
    state["momentum_buffer"] = state["momentum_buffer"] * 2
    expected = state["momentum_buffer"].flatten(1).clone()
    store.refresh()
    out = store.keep(at(*range(4)))
    memory_order = expected.view(4, 3, 9).transpose(1, 2).reshape(-1)[:4]
    assert torch.equal(out[1], memory_order)


def test_looking_at_every_parameter_is_cheap():
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=10)
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert len(store.layout.entries) == 62
    times = timeit.repeat(store.refresh, number=200, repeat=5, timer=time.thread_time)
    seconds = min(times) / 200
    assert seconds < 100e-6  # docs/performance.md has the figure of a quiet machine


def test_parameters_that_exchange_their_memory_keep_their_values():
    net = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])
    store = Store(net, sgd(net))
    a, b, c = (layer.weight for layer in net)
    values = [p.detach().clone() for p in (b, c, a)]
    a.data, b.data, c.data = b.data, c.data, a.data
    store.refresh()
    assert all(torch.equal(p, v) for p, v in zip((a, b, c), values, strict=True))
    for value, now in zip(store.values().values(), values, strict=True):
        assert torch.equal(value.view(4, 4), now)


def test_parameters_that_are_tied_by_memory_after_joining_are_refused():
    net = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
    store = Store(net, sgd(net))
    net[1].weight.data = net[0].weight.data
    with pytest.raises(UsageError, match=r"0.weight and 1.weight are two Parameters in the same"):
        store.refresh()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tensor_in_a_parameters_memory_is_refused(frozen):
    net = nn.Linear(4, 4)
    seen = net.weight.detach()[1:]
    if frozen:
        net.register_parameter("w", nn.Parameter(seen, requires_grad=False))
    else:
        net.register_buffer("w", seen)
    with pytest.raises(UsageError, match="weight and w are a Parameter and a tensor in the same"):
        Store(net, sgd(net))


def test_a_parameter_in_a_larger_tensors_memory_is_refused():
    memory = torch.zeros(20)
    net = nn.Module()
    net.weight = nn.Parameter(memory[5:15])
    net.register_buffer("w", memory[:10])
    with pytest.raises(UsageError, match="w and weight are a Parameter and a tensor in the same"):
        Store(net, sgd(net))
