"""Models on disk: safetensors, whole or not at all. Nothing here, or anywhere, unpickles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save

from washp2p.rundir import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def save_model(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a state dict of contiguous CPU tensors that share no memory."""
    write_bytes(path, save(state))
