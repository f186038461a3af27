"""One member's training: the head first, and stochastic weight averaging."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from washp2p.config.config import RunConfig
from workers.training.data import load_data
from workers.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        config = RunConfig.resolve(n=2, data="digits", batch_size=100, train_limit=450, **options)
        data = load_data(config, tmp_path, download=False)
        return Trainer(config, data, 0, torch.device("cpu"))

    return make


def states(trainer):
    """After each step: the epoch that ended with it if one did, and the parameters."""
    seen = []
    with trainer.streams.active():
        for event in trainer.train():
            if event is None:
                flat = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
                lr = trainer.optimizer.param_groups[0]["lr"]
                seen.append([None, lr, flat.clone()])
            else:
                seen[-1][0] = event
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("head_first", "steps"), [("1", 4), ("0.375", 6)])
def test_only_the_last_layer_trains_at_first(trainer, optimizer, head_first, steps):
    own = trainer(epochs=4, head_first=head_first, optimizer=optimizer)
    body = sum(p.numel() for p in own.model.parameters()) - 330
    begun = torch.cat([p.detach().flatten() for p in own.model.parameters()])
    seen = [flat for _, _, flat in states(own)]
    assert len(seen) == 16
    for number, flat in enumerate(seen, 1):
        assert torch.equal(flat[:body], begun[:body]) == (number <= steps), number
        assert not torch.equal(flat[body:], begun[body:])


def test_the_mean_of_its_own_epochs_is_what_it_ends_with(trainer):
    own = trainer(epochs=5, swa_from="2", swa_lr=0.01, model="resnet18")
    seen = states(own)
    rates = [lr for _, lr, _ in seen]
    assert rates[8:] == [0.01] * 12
    assert all(a > b for a, b in pairwise(rates[:8]))
    ends = [flat for epoch, _, flat in seen if epoch is not None and epoch.number > 2]
    assert len(ends) == 3
    final = own.final_state()
    names = [name for name, _ in own.model.named_parameters()]
    found = torch.cat([final[name].flatten() for name in names])
    torch.testing.assert_close(found, torch.stack(ends).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert final["bn1.num_batches_tracked"] == 4
    assert not torch.equal(final["bn1.running_mean"], own.model.bn1.running_mean)


def test_without_it_a_member_ends_with_its_model(trainer):
    own = trainer(epochs=1)
    states(own)
    assert own.final_state() is None
