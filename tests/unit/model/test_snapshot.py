"""Snapshots: a whole state, of whom and when; a byte that has changed is noticed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import nn

from washp2p.errors import ProtocolError
from washp2p.model.snapshot import CHECKSUM_BYTES, Snapshot, open_snapshot, restore, take
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


def rewritten(data, **changes):
    """A snapshot whose description is changed, with a right checksum."""
    whole = data[:-CHECKSUM_BYTES]
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["washp2p"]) | changes
    header["__metadata__"]["washp2p"] = json.dumps(meta)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    return whole + hashlib.blake2b(whole, digest_size=CHECKSUM_BYTES).digest()


def test_a_description_may_be_written_again():
    _, _, store = make()
    assert open_snapshot(rewritten(take(store, WHERE), round=10)).snapshot.round == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "no hex"},
        {"member": "3"},
        {"step": None},
        {"round": 1.5},
        {"extra": [1]},
        {"extra": {"items": [[1.5, 2]]}},
        {"extra": {"items": [["a", {"washp2p.tensor": 77}]]}},
        {"highest_lr": "0.1"},
        {"frozen": {"0.weight": 5}},
        {"frozen": []},
    ],
)
def test_a_wrong_description_is_refused(changes):
    _, _, store = make()
    with pytest.raises(ProtocolError, match="not a snapshot: "):
        open_snapshot(rewritten(take(store, WHERE), **changes))


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        {"items": []},
        {"items": [["state", {"items": [[99, 1]]}], ["groups", []], ["more", {"items": []}]]},
        {"items": [["state", {"items": []}], ["groups", [5]], ["more", {"items": []}]]},
        {"items": [["state", {"items": []}], ["groups", []], ["more", {"items": []}]]},
        {"items": [["state", {"items": [["a", {"tuple": 5}]]}], ["groups", []], ["more", 1]]},
    ],
)
def test_a_state_that_no_such_optimizer_has_is_refused(optimizer):
    _, _, store = make()
    opened = open_snapshot(rewritten(take(store, WHERE), optimizer=optimizer))
    with pytest.raises(ProtocolError, match="not a snapshot of such a member: "):
        restore(store, opened)


def test_state_of_a_parameter_that_the_optimizer_lacks_is_refused():
    model, optimizer, trained = make()
    step(model, optimizer)
    other = make(1)[0]
    head = torch.optim.Adam(other[2].parameters(), lr=0.1)
    theirs = Store(other, head)
    opened = open_snapshot(take(trained, WHERE))
    with pytest.raises(ProtocolError, match="which the optimizer lacks"):
        restore(theirs, opened)
