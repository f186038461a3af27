"""Optimizers: what is inside a wrapper, whose state can be given back, and what it comes to."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from washp2p.errors import UsageError
from washp2p.model.optimizers import (
    copies_in,
    give_state,
    plain_optimizer,
    plain_scaler,
    state_of,
    why_not_restorable,
)

KINDS = [
    kind
    for name, kind in sorted(vars(torch.optim).items())
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in {"Optimizer", "SparseAdam", "Muon"}
]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def step(model, optimizer, seed):
    def closure():
        optimizer.zero_grad()
        loss = (
            model(torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))).square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_optimizer_of_torch_goes_on_from_its_state_bit_for_bit(kind):
    model, other = net(), net()
    optimizer, twin = kind(model.parameters(), lr=0.01), kind(other.parameters(), lr=0.01)
    assert why_not_restorable(optimizer) == ""
    for seed in range(3):
        step(model, optimizer, seed)
    tensors, plain = state_of(optimizer, list(model.parameters()))
    data = save({str(k): t.clone() for k, t in enumerate(tensors)})
    other.load_state_dict(model.state_dict())
    give_state(twin, list(other.parameters()), load(data), json.loads(json.dumps(plain)))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, twin, seed)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"amsgrad": True}])
def test_counters_of_steps_are_where_the_optimizer_wants_them(options):
    model, other = net(), net()
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    twin = torch.optim.AdamW(other.parameters(), **options)
    step(model, optimizer, 0)
    tensors, plain = state_of(optimizer, list(model.parameters()))
    give_state(twin, list(other.parameters()), {str(k): t for k, t in enumerate(tensors)}, plain)
    for (_, mine), (_, theirs) in zip(optimizer.state.items(), twin.state.items(), strict=True):
        assert mine["step"].device == theirs["step"].device
        assert mine["step"] == theirs["step"] == 1
    step(other, twin, 1)


class Special(torch.Tensor):
    """As 8-bit optimizers keep their state."""


class Quantised(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["q"] = parameter.detach().clone().as_subclass(Special)


class Forgetful(Quantised):
    """Does not take back what it gave."""

    def load_state_dict(self, state):
        pass


def test_state_that_cannot_be_kept_is_known_when_joining():
    parameters = list(net().parameters())
    assert why_not_restorable(Quantised(parameters)) == "a Special cannot be written to a file"
    optimizer = Forgetful(parameters)
    optimizer.step = lambda: None
    assert why_not_restorable(optimizer) in {
        "a Special cannot be written to a file",
        "it differs after having been given back",
    }


def test_groups_keep_what_cannot_be_written():
    model, other = net(), net()
    optimizer, twin = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    optimizer.param_groups[0]["name"] = "all"
    twin.param_groups[0]["rule"] = len
    optimizer.param_groups[0]["lr"] = 0.025
    _, plain = state_of(optimizer, list(model.parameters()))
    give_state(twin, list(other.parameters()), {}, plain)
    group = twin.param_groups[0]
    assert (group["lr"], group["name"], group["rule"]) == (0.025, "all", len)


class Master(torch.optim.Optimizer):
    """Keeps float32 master weights, as apex and DeepSpeed do."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            master = self.state[parameter].setdefault("master", parameter.detach().float().clone())
            master.add_(parameter.grad.float(), alpha=-self.param_groups[0]["lr"])
            parameter.copy_(master)


def test_copies_of_the_parameters_are_found():
    model = net().bfloat16()
    optimizer = Master(model.parameters(), 0.1)
    model(torch.randn(4, 8).bfloat16()).square().sum().backward()
    optimizer.step()
    assert copies_in(optimizer) == ["master"]
    plain = net()
    for kind in (torch.optim.ASGD, torch.optim.AdamW):
        own = kind(plain.parameters())
        step(plain, own, 0)
        assert copies_in(own) == []


def test_wrappers_are_opened_or_named():
    accelerate = pytest.importorskip("accelerate")
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert plain_optimizer(wrapped) is plain_optimizer(optimizer) is optimizer

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    with pytest.raises(UsageError, match=r"is a Wrapper; expected .*: pass its .optimizer"):
        plain_optimizer(Wrapper(optimizer))
    with pytest.raises(UsageError, match="the optimizer is a Linear; expected"):
        plain_optimizer(nn.Linear(2, 2))


def test_scalers_are_opened_or_named():
    timm = pytest.importorskip("timm")
    native = timm.utils.NativeScaler(device="cpu")
    assert plain_scaler(native) is native._scaler
    assert plain_scaler(native._scaler) is native._scaler
    assert plain_scaler(None) is None
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), lr=0.1), 1)
    with pytest.raises(UsageError, match=r"scaler is a StepLR; expected the torch.amp.GradScaler"):
        plain_scaler(scheduler)
