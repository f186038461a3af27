"""Models on disk as safetensors files, which are read without unpickling.

A file is written whole or not at all. It names its run, member and round, and has a checksum of its
tensors.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from washp2p.errors import UsageError
from washp2p.runfolder.rundir import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

_META = "washp2p"


def save_model(
    path: Path, state: dict[str, torch.Tensor], *, lasting: bool = True, **about: Any
) -> None:
    """Write a state dict of contiguous CPU tensors that share no memory.

    `about` has plain values to store in the file, such as run, member and round. `lasting` is as in
    `rundir.write_bytes`. Raises UsageError if the file cannot be written.
    """
    meta = json.dumps({**about, "checksum": _checksum(state)})
    write_bytes(path, save(state, {_META: meta}), lasting=lasting)


def load_model(path: Path, *, member: int | None = None) -> dict[str, torch.Tensor]:
    """Read a file's state dict. If `member` is given and the file names one, both must agree.

    Raises UsageError if the file cannot be read, is damaged, or is another member's.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get(_META, "{}"))
        state: dict[str, torch.Tensor] = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {error}; expected a model (safetensors)") from None
    if "checksum" in meta and meta["checksum"] != _checksum(state):
        raise UsageError(f"{path} is damaged: its checksum is wrong; expected it as it was written")
    if member is not None and meta.get("member", member) != member:
        raise UsageError(f"{path} holds the model of member {meta['member']}, not of {member}")
    return state


def _checksum(state: dict[str, torch.Tensor]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        whole.update(f"{name} {tuple(state[name].shape)} {state[name].dtype};".encode())
        whole.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
