"""The store: flattening changes nothing but where values live; gather and scatter; state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from washp2p.errors import UsageError
from washp2p.model.device_copies import HostCopies
from washp2p.model.optimizer_slots import optimizer_slots
from washp2p.model.store import Store


def at(*places):
    return HostCopies().upload(np.array(places, dtype=np.int64))


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    )


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 1, 4, 4, generator=generator)
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        sgd,
        lambda m: torch.optim.Adam(m.parameters()),
        lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
    ],
)
def test_training_goes_on_bit_for_bit(make):
    plain, flat = small_model(), small_model()
    plain_optimizer, flat_optimizer = make(plain), make(flat)
    before = list(flat.parameters())
    store = Store(flat, flat_optimizer, optimizer_slots(flat_optimizer))
    assert all(a is b for a, b in zip(before, flat.parameters(), strict=True))
    everything = at(*range(store.layout.size))
    out = [torch.empty(store.layout.size) for _ in store.layout.slots]
    for seed in range(4):
        step(plain, plain_optimizer, seed)
        step(flat, flat_optimizer, seed)
        store.refresh()
        store.gather(everything, out)
    for (name, a), b in zip(plain.state_dict().items(), flat.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), flat.parameters(), strict=True):
        for name, value in plain_optimizer.state[a].items():
            assert torch.equal(value, flat_optimizer.state[b][name]), name


def test_gather_and_scatter_address_values_and_their_momentum():
    model = small_model()
    optimizer = sgd(model)
    store = Store(model, optimizer, ("momentum_buffer",))
    entry = next(e for e in store.layout.entries if e.name == "4.weight")
    places = at(entry.offset + 7, entry.offset + 100)
    out = [torch.empty(2), torch.empty(2)]
    store.refresh()
    store.gather(places, out)
    assert torch.equal(out[0], model[4].weight.detach().view(-1)[[7, 100]])
    assert torch.equal(out[1], torch.zeros(2))  # there is no momentum yet
    step(model, optimizer, 0)
    store.refresh()
    store.gather(places, out)
    momentum = optimizer.state[model[4].weight]["momentum_buffer"]
    assert torch.equal(out[1], momentum.view(-1)[[7, 100]])
    store.scatter(places, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])])
    assert model[4].weight.detach().view(-1)[[7, 100]].tolist() == [1.0, 2.0]
    assert momentum.data_ptr() != optimizer.state  # still a tensor of its own
    assert optimizer.state[model[4].weight]["momentum_buffer"].view(-1)[[7, 100]].tolist() == [3, 4]


@pytest.mark.parametrize("make", [sgd, lambda m: torch.optim.Adam(m.parameters(), lr=0.1)])
def test_state_that_does_not_exist_is_created_by_its_first_write(make):
    model = small_model()
    optimizer = make(model)
    store = Store(model, optimizer, optimizer_slots(optimizer))
    entry = store.layout.entries[0]
    values = [torch.full((1,), 0.5) for _ in store.layout.slots]
    store.scatter(at(entry.offset), values)
    parameter = next(model.parameters())
    for slot in store.layout.slots[1:]:
        state = optimizer.state[parameter][slot.name]
        assert state.view(-1)[0] == 0.5
        assert state.view(-1)[1:].eq(0).all()
    assert len(optimizer.state) == 1
    step(model, optimizer, 1)  # the optimizer takes it from there


def test_channels_last_keeps_its_strides_and_differs_in_layout():
    model = small_model().to(memory_format=torch.channels_last)
    model[0] = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    weight = model[0].weight.detach().clone()
    store = Store(model, sgd(model))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model[0].weight, weight)
    other = Store(contiguous, sgd(contiguous))
    assert "0.weight" in store.layout.difference(other.layout)


def test_tied_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(requires_grad=False)
    store = Store(model, sgd(model))
    assert [e.name for e in store.layout.entries] == ["0.weight", "0.bias", "1.bias"]
    assert [e.layer for e in store.layout.entries] == [0, 0, 1]
    assert model[1].weight is model[0].weight
    assert store.frozen == ["2.weight", "2.bias"]
    assert list(store.values()) == ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]
    assert list(store.values(frozen=False)) == ["0.weight", "0.bias", "1.bias"]


@pytest.mark.parametrize("compiled", [False, True])
def test_values_of_another_models_state_dict(compiled):
    model, other = small_model(), small_model()
    step(other, sgd(other), 3)
    expected = Store(other, sgd(other)).values()
    state = other.state_dict()
    if compiled:
        model = torch.compile(model, backend="eager")
        state = {f"_orig_mod.{name}": value for name, value in state.items()}
    store = Store(model, sgd(model))
    before = store.vector.clone()
    for named in (state, other.state_dict()):
        found = store.values_of(named)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(store.vector, before)
    name, value = next(iter(other.state_dict().items()))
    for wrong, words in (({}, "nothing"), ({name: value[:1]}, r"shape \(1, ")):
        with pytest.raises(UsageError, match=f"averaged has {words}.* under {name}; expected"):
            store.values_of(wrong)


def test_values_carry_a_whole_model():
    model, other = small_model(), small_model()
    step(model, sgd(model), 3)
    source, target = Store(model, sgd(model)), Store(other, sgd(other))
    target.load_values(source.values())
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    again = target.state_dict(target.values())
    assert list(again) == list(model.state_dict())
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert all(value.is_contiguous() for value in again.values())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.ReLU(), "no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "1.weight is float64"),
        (nn.Linear(2, 2, dtype=torch.complex64), "complex64"),
        (nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Linear(2, 2)), "of 0 are sparse"),
    ],
)
def test_models_that_cannot_be_exchanged_are_refused(model, words):
    with pytest.raises(UsageError, match=words):
        Store(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


@pytest.fixture
def alone():
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_models_over_several_processes_are_refused():
    partly = nn.Sequential(nn.parallel.DistributedDataParallel(small_model()), nn.Linear(5, 2))
    with pytest.raises(UsageError, match="part of the model is in DistributedDataParallel"):
        Store(partly, sgd(partly))
    sharded = fully_shard(small_model(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UsageError, match="are sharded over processes"):
        Store(sharded, sgd(sharded))


@pytest.mark.usefixtures("alone")
def test_a_replicated_model_is_the_model_itself():
    replicated = nn.parallel.DistributedDataParallel(small_model())
    store = Store(replicated, sgd(replicated))
    assert store.layout == Store(small_model(), sgd(small_model())).layout
    assert store.state_dict(store.values()).keys() == replicated.state_dict().keys()


def test_sparse_adam_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="gradients of the parameters are sparse"):
        Store(model, torch.optim.SparseAdam(model.parameters()))


def test_a_compiled_model_is_the_model_itself():
    compiled = torch.compile(small_model(), backend="eager")
    store, plain = Store(compiled, sgd(compiled)), small_model()
    assert store.layout == Store(plain, sgd(plain)).layout
    compiled.load_state_dict(store.state_dict(store.values()))


def test_a_parameter_added_after_joining_is_noticed():
    model = small_model()
    optimizer = sgd(model)
    store = Store(model, optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(UsageError, match="when the model joined; expected the same ones"):
        store.refresh()


def test_moving_the_model_after_joining_is_noticed():
    model = small_model()
    store = Store(model, sgd(model))
    model.double()
    with pytest.raises(UsageError, match=r"0.weight is .* float64 on cpu now; it was .* float32"):
        store.refresh()


def test_a_loaded_optimizer_state_is_taken_over():
    model = small_model()
    optimizer = sgd(model)
    store = Store(model, optimizer, ("momentum_buffer",))
    out = [torch.empty(store.layout.size) for _ in range(2)]
    everything = at(*range(store.layout.size))
    step(model, optimizer, 0)
    store.refresh()
    store.gather(everything, out)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    saved = out[1].clone()
    step(model, optimizer, 1)
    optimizer.load_state_dict(checkpoint)
    store.refresh()
    store.gather(everything, out)
    assert torch.equal(out[1], saved)
    store.scatter(at(0), [torch.zeros(1), torch.full((1,), 7.0)])
    assert optimizer.state[model[0].weight]["momentum_buffer"].view(-1)[0] == 7.0


def test_parameters_that_the_optimizer_does_not_own_have_no_state():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd(model[1])
    store = Store(model, optimizer, ("momentum_buffer",))
    store.scatter(at(0, 1, 2, 3), [torch.zeros(4), torch.ones(4)])
    assert not optimizer.state
    optimizer.state_dict()


def test_wash_opt_refuses_optimizers_it_does_not_know():
    with pytest.raises(UsageError, match="cannot find out what state LBFGS has"):
        optimizer_slots(torch.optim.LBFGS(small_model().parameters()))


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        ("SGD", {"lr": 0.1}, ()),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, ("momentum_buffer",)),
        ("AdamW", {"amsgrad": True}, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
        ("RMSprop", {"momentum": 0.5}, ("square_avg", "momentum_buffer")),
        ("Adagrad", {}, ("sum",)),
        ("NAdam", {}, ("exp_avg", "exp_avg_sq")),
        ("Adafactor", {}, ()),
    ],
)
def test_wash_opt_takes_along_whatever_state_is_shaped_like_its_parameter(kind, options, names):
    model = small_model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    assert optimizer_slots(optimizer) == names
    store = Store(model, optimizer, names)
    everything = at(*range(4))
    store.scatter(everything, [torch.full((4,), 2.0) for _ in range(1 + len(names))])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.step()
    out = [torch.empty(4) for _ in range(1 + len(names))]
    store.refresh()
    store.gather(everything, out)
    for values, name in zip(out[1:], names, strict=True):
        state = optimizer.state[next(model.parameters())][name]
        assert torch.equal(values, state.flatten()[:4])
    store.scatter(everything, [torch.zeros(4) for _ in out])
    for name in names:
        assert not optimizer.state[next(model.parameters())][name].flatten()[:4].any()


@pytest.mark.parametrize("lr", [None, 0.1, torch.tensor(0.1)])
def test_a_learning_rate_may_be_a_tensor_or_none(lr):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    store = Store(model, optimizer)
    store.learning_rate.sample()
    assert store.learning_rate.share == 1
    if lr is not None:
        optimizer.param_groups[0]["lr"] = 0.025
        store.learning_rate.sample()
        assert store.learning_rate.share == pytest.approx(0.25)


def test_parameters_without_dimensions_or_elements():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))
            self.nothing = nn.Parameter(torch.zeros(0, 4))
            self.inner = nn.Linear(2, 2)

    model = Odd()
    store = Store(model, sgd(model))
    store.refresh()
    values = {name: value.clone() * 2 for name, value in store.values().items()}
    store.load_values(values)
    assert model.scale == 6
    state = store.state_dict(values)
    assert state["scale"].shape == ()
    assert state["nothing"].shape == (0, 4)
    model.load_state_dict(state)
    store.release()
