"""Models on disk say what they are; damage is refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from washp2p.errors import UsageError
from workers.training.model_files import load_model, save_model

STATE = {"a": torch.arange(50.0), "b": torch.tensor(3)}


def test_a_model_comes_back(tmp_path):
    path = tmp_path / "members" / "1.safetensors"
    save_model(path, STATE, run="x", member=1, round=7)
    for state in (load_model(path), load_model(path, member=1), load_file(path)):
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[name], value) for name, value in STATE.items())
    with pytest.raises(UsageError, match=f"{path} holds the model of member 1, not of 2"):
        load_model(path, member=2)


def test_a_flipped_bit_is_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, STATE, run="x")
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"{path} is damaged: its checksum is wrong"):
        load_model(path)
    path.write_bytes(data[:50])
    with pytest.raises(UsageError, match=f"cannot read {path}"):
        load_model(path)


def test_files_without_a_checksum_are_read_all_the_same(tmp_path):
    save_file(STATE, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").keys() == STATE.keys()
