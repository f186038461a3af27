"""Each buffer is averaged by its rule, or refused by name when the model joins."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from washp2p.errors import UsageError
from washp2p.model.buffers import kept_tensors, recompute
from washp2p.model.means import average_state, mean
from washp2p.model.optimizers import parameters_outside
from washp2p.model.store import Store


def with_buffer(value, *, persistent=True, name="extra"):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net.register_buffer(name, value, persistent=persistent)
    return net


def rules(net, by_hand=()):
    return {kept.buffer.name: kept.buffer.rule for kept in kept_tensors(net, dict(by_hand))}


@pytest.mark.parametrize(
    ("value", "name", "rule"),
    [
        (torch.randn(3, 3), "extra", "mean"),
        (torch.tensor(3), "extra", "max"),
        (torch.tensor([3, 9, 3]), "counts", "max"),
        (torch.randperm(9), "extra", "first"),
        (torch.tensor([True, False]), "extra", "first"),
        (torch.get_rng_state(), "extra", "first"),
        (torch.ones(3, 3).tril(), "attention_mask", "first"),
        (nn.functional.normalize(torch.randn(5, 8), dim=1), "queue", "first"),
        (nn.functional.normalize(torch.randn(8, 5), dim=0), "queue", "first"),
        (nn.functional.normalize(torch.randn(8), dim=0), "u", "first"),
        (torch.randn(3, dtype=torch.complex64), "rotation", "mean"),
        (torch.zeros(3, dtype=torch.float8_e4m3fn), "extra", "mean"),
    ],
)
def test_a_rule_follows_from_what_a_buffer_is(value, name, rule):
    found = rules(with_buffer(value, name=name))
    assert found == {
        name: rule,
        "1.running_mean": "mean",
        "1.running_var": "mean",
        "1.num_batches_tracked": "max",
    }
    by_hand = rules(with_buffer(value, name=name), {name: "equal"})
    assert by_hand[name] == "equal"


def test_frozen_parameters_and_buffers_of_ones_own():
    net = with_buffer(torch.zeros(2), persistent=False)
    net[0].bias.requires_grad_(requires_grad=False)
    found = rules(net)
    assert (found["0.bias"], found["extra"]) == ("mean", "own")
    store = Store(net, torch.optim.SGD([net[0].weight], lr=0.1))
    assert "extra" not in store.values()
    assert store.frozen == ["0.bias"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(5).to_sparse_coo(), "buffer extra has the layout sparse_coo"),
        (lambda: torch.eye(5).to_sparse_csr(), "buffer extra has the layout sparse_csr"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
            "extra is quantised",
        ),
        (lambda: torch.zeros(3, device="meta"), "extra is on the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_averaged_is_refused_by_name(make, words):
    value = make()
    with pytest.raises(UsageError, match=f"{words}.*persistent=False"):
        kept_tensors(with_buffer(value), {})
    assert rules(with_buffer(value, persistent=False))["extra"] == "own"


@pytest.mark.parametrize(
    ("by_hand", "words"),
    [
        ({"nothing": "mean"}, "a rule for 'nothing'; the model's buffers are 1.num_batches"),
        ({"1.running_var": "median"}, "is 'median'; expected one of mean, max, first, equal"),
        ({"1.running_var": "max"}, "'max', for counters of whole numbers; the buffer is float32"),
    ],
)
def test_rules_that_cannot_be_are_refused(by_hand, words):
    with pytest.raises(UsageError, match=words):
        kept_tensors(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), by_hand)


def test_lazy_modules_are_told_what_to_do():
    for lazy in (nn.LazyLinear(3), nn.LazyBatchNorm1d()):
        net = nn.Sequential(nn.Linear(4, 4), lazy)
        with pytest.raises(UsageError, match=r"lazy module.*run a batch"):
            Store(net, torch.optim.SGD(net[0].parameters(), lr=0.1))


@pytest.mark.parametrize("how", ["parametrization", "hook", "convolution"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_averaged_layers_of_spectral_norm_have_spectral_norm_1(how):
    def build(seed):
        torch.manual_seed(seed)
        layer = nn.Conv2d(3, 8, 3) if how == "convolution" else nn.Linear(12, 8)
        wrap = nn.utils.spectral_norm if how == "hook" else parametrizations.spectral_norm
        return nn.Sequential(wrap(layer))

    nets = [build(seed) for seed in range(3)]
    shape = (2, 3, 5, 5) if how == "convolution" else (2, 12)
    for net in nets:
        net(torch.randn(shape))
    assert sorted(rules(nets[0]).values()).count("recomputed") == 2
    averaged = average_state([net.state_dict() for net in nets])
    for net in (build(0), build(7)):
        taken = {name: value.clone() for name, value in averaged.items()}
        assert recompute(net, taken) == []
        net.load_state_dict(taken)
        net.eval()
        net(torch.randn(shape))
        norm = torch.linalg.matrix_norm(net[0].weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=1e-5)


def test_means_of_odd_dtypes():
    a, b = torch.tensor([1 + 2j, 3j]), torch.tensor([3 + 0j, 1j])
    assert torch.equal(mean([a, b]), torch.tensor([2 + 1j, 2j]))
    eighths = [torch.tensor([v, 2.0]).to(torch.float8_e4m3fn) for v in (1.0, 3.0)]
    assert mean(eighths).float().tolist() == [2.0, 2.0]
    assert mean(eighths).dtype is torch.float8_e4m3fn


class Scaled(nn.Linear):
    def get_extra_state(self):
        return {"scale": 2}

    def set_extra_state(self, state):
        assert state == {"scale": 2}


class Renamed(nn.Module):
    """Has a state dict of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x)

    def state_dict(self):
        return {"w": self.inner.weight.detach(), "b": self.inner.bias.detach()}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.inner.weight.copy_(state["w"])
            self.inner.bias.copy_(state["b"])


def test_state_dicts_that_are_not_the_usual_ones():
    net = nn.Sequential(Scaled(4, 3), nn.Linear(3, 2))
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    doubled = {name: value * 2 for name, value in store.values().items()}
    state = store.state_dict(doubled)
    assert state["0._extra_state"] == {"scale": 2}
    assert torch.equal(state["1.weight"], net[1].weight * 2)
    net.load_state_dict(state)

    own = Renamed()
    store = Store(own, torch.optim.SGD(own.parameters(), lr=0.1))
    before = own.inner.weight.detach().clone()
    doubled = {name: value * 2 for name, value in store.values().items()}
    state = store.state_dict(doubled)
    assert torch.equal(state["w"], before * 2)
    assert torch.equal(own.inner.weight, before)  # and it is as it was
    assert list(store.state_dict(doubled, trainable_only=True)) == ["inner.weight", "inner.bias"]


def test_a_buffer_that_grows_is_named():
    net = with_buffer(torch.zeros(0))
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    store.check_model()
    net.extra = torch.ones(3)
    with pytest.raises(UsageError, match=r"buffer extra is \[3\] float32 now, it was \[0\]"):
        store.check_model()


@pytest.mark.parametrize(
    ("build", "last", "layers"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "", [0, 0, 1, 1]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "0", [1, 1, 0, 0]),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2))),
            "",
            [0, 0, 1, 1, 1],
        ),
        (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2)),
            "0",
            [1, 1, 1, 0, 0],
        ),
    ],
)
def test_layers_and_which_is_the_last(build, last, layers):
    net = build()
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1), last=last)
    assert [entry.layer for entry in store.layout.entries] == layers


def test_the_last_layer_of_a_tied_head_is_the_one_that_owns_its_weights():
    net = nn.ModuleDict(
        {"emb": nn.Embedding(4, 3), "body": nn.Linear(3, 3), "head": nn.Linear(3, 4, bias=False)}
    )
    net["head"].weight = net["emb"].weight
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1), last="head")
    assert {e.name: e.layer for e in store.layout.entries}["emb.weight"] == 1
    with pytest.raises(UsageError, match=r"--last is 'nose'.*layers are body, emb"):
        Store(net, torch.optim.SGD(net.parameters(), lr=0.1), last="nose")


class Late(nn.Module):
    """A buffer that its first batch fills, as of a normalisation."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("mean", None)


@pytest.mark.parametrize("add", ["buffer", "frozen", "layer"])
def test_what_is_added_after_joining_is_refused_by_name(add):
    net = Late()
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    store.check_model()
    if add == "buffer":
        net.mean, name = torch.zeros(3), "mean"
    elif add == "frozen":
        net.frozen, name = nn.Parameter(torch.zeros(3), requires_grad=False), "frozen"
    else:
        net.head, name = nn.Linear(2, 2), "head.weight"
    with pytest.raises(UsageError, match=f"^{name} was added to the model after it joined"):
        store.check_model()


def test_a_buffer_that_two_modules_share_must_stay_one():
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    net[0].register_buffer("b", torch.zeros(2))
    net[1].register_buffer("b", net[0].b)
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net[0].b.add_(1)
    store.check_model()
    net[1].b = torch.ones(2)
    with pytest.raises(UsageError, match=r"0.b and 1.b were one tensor when the model joined"):
        store.check_model()


def test_a_buffer_that_is_a_parameter_is_averaged_once():
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_buffer("w", net[0].weight)
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert list(store.values()) == ["0.weight", "0.bias"]
    store.check_model()
    assert store.state_dict(store.values()).keys() == net.state_dict().keys()


def test_buffers_of_odd_strides():
    net = with_buffer(torch.arange(8.0)[::2])
    store = Store(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert store.values()["extra"].tolist() == [0, 2, 4, 6]
    assert store.values()["extra"].is_contiguous()
    with pytest.raises(UsageError, match="buffer extra is expanded"):
        kept_tensors(with_buffer(torch.zeros(1).expand(4)), {})


def test_a_state_dict_of_its_own_takes_the_place_of_nothing():
    own = Renamed()
    store = Store(own, torch.optim.SGD(own.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="makes a state dict of its own"):
        store.values_of(own.state_dict())


def test_parameters_that_the_model_does_not_have_are_counted():
    net, criterion = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*net.parameters(), *criterion.parameters()], lr=0.1)
    assert parameters_outside(net, optimizer) == 2
