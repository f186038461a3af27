"""Snapshots: a whole state, of whom and when; a byte that has changed is noticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from washp2p.errors import ProtocolError
from washp2p.model.snapshot import Snapshot, open_snapshot, restore, take
from washp2p.model.store import Store

WHERE = Snapshot(run=b"12345678", member=3, step=7, round=9, extra={"a": [1, (2.5, None)], 5: "x"})


def make(seed=0):
    torch.manual_seed(seed)
    frozen = nn.Linear(40, 40)
    frozen.requires_grad_(requires_grad=False)
    model = nn.Sequential(frozen, nn.BatchNorm1d(40), nn.Linear(40, 3))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return model, optimizer, Store(model, optimizer)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 40)).square().sum().backward()
    optimizer.step()


def test_it_is_a_whole_state():
    model, optimizer, store = make()
    step(model, optimizer)
    store.learning_rate.sample()
    data = take(store, WHERE)
    opened = open_snapshot(data)
    assert opened.snapshot == WHERE
    other, twin, theirs = make(1)
    restore(theirs, opened)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    torch.manual_seed(5)
    step(model, optimizer)
    torch.manual_seed(5)
    step(other, twin)
    assert torch.equal(model[2].weight, other[2].weight)
    assert theirs.learning_rate.highest == 0.1


def test_what_is_frozen_goes_as_digests():
    model, _, store = make()
    data = take(store, WHERE, frozen=False)
    assert len(data) < len(take(store, WHERE)) - model[0].weight.nbytes
    opened = open_snapshot(data)
    _, _, same = make()
    assert opened.lacks(same) == []
    _, _, other = make(1)
    assert opened.lacks(other) == ["0.weight", "0.bias"]
    values = store.values()
    restore(other, opened, {name: values[name].clone() for name in ("0.weight", "0.bias")})
    assert opened.lacks(other) == []


@pytest.mark.parametrize("at", [0, 9, 300, 3000, -17, -1])
def test_a_flipped_bit_is_noticed(at):
    _, _, store = make()
    data = bytearray(take(store, WHERE))
    data[at] ^= 4
    with pytest.raises(ProtocolError, match=r"it is damaged: .* whose checksum is wrong"):
        open_snapshot(bytes(data))
    with pytest.raises(ProtocolError, match="damaged"):
        open_snapshot(bytes(data[:100]))


def test_that_of_another_model_changes_nothing():
    _, _, store = make()
    other = nn.Linear(3, 2)
    theirs = Store(other, torch.optim.SGD(other.parameters(), lr=0.1))
    before = other.weight.detach().clone()
    with pytest.raises(ProtocolError, match="not a snapshot of such a member"):
        restore(theirs, open_snapshot(take(store, WHERE)))
    assert torch.equal(other.weight, before)
