"""A snapshot: one member's whole state after one of its steps, as bytes.

Parameters and buffers, the optimizer's state, the round and how many steps it took. What a
newcomer begins with, and what a checkpoint keeps: safetensors, so nothing in it can be code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from washp2p.errors import ProtocolError

if TYPE_CHECKING:
    import torch

    from washp2p.store import Store

_META = "washp2p"


@dataclass(frozen=True)
class Snapshot:
    """Where its member was: own steps taken, the last round, and what else was put in."""

    step: int
    round: int
    extra: dict[str, Any] = field(default_factory=dict)


def take(store: Store, snapshot: Snapshot) -> bytes:
    """The state of `store`'s member now."""
    tensors = {f"section.{name}": vector for name, vector in store.sections().items()}
    state, plain = store.optimizer_state()
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
    meta = {
        "step": snapshot.step,
        "round": snapshot.round,
        "extra": snapshot.extra,
        "optimizer": plain,
    }
    return save(tensors, {_META: json.dumps(meta)})


def restore(store: Store, data: bytes) -> Snapshot:
    """Make `store`'s member what a snapshot of an equal one says; where that was.

    Raises ProtocolError if `data` is no snapshot that fits.
    """
    try:
        tensors = load(data)
        meta = json.loads(_metadata(data)[_META])
        snapshot = Snapshot(index(meta["step"]), index(meta["round"]), meta["extra"])
        plain = meta["optimizer"]
        store.load_sections(_part(tensors, "section."))
        store.load_optimizer_state(_part(tensors, "optimizer."), plain)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        RuntimeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise ProtocolError(f"not a snapshot of such a member: {error!r:.200}") from None
    return snapshot


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
