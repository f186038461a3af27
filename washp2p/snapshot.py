"""A snapshot: one member's whole state after one of its steps, as bytes.

Parameters and buffers, the optimizer's state, the round and how many steps it took. What a
newcomer begins with, and what a checkpoint keeps: safetensors, so nothing in it can be code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from washp2p.errors import ProtocolError

if TYPE_CHECKING:
    from washp2p.store import Store

_META = "washp2p"
_TENSOR = "washp2p.tensor"
"""Stands in plain values, with a number, for a tensor beside them."""


@dataclass(frozen=True)
class Snapshot:
    """Where its member was: own steps taken, the last round, and what else was put in.

    That is plain values (JSON's) and tensors, on any device, which come back on the CPU.
    """

    step: int
    round: int
    extra: dict[str, Any] = field(default_factory=dict)


def take(store: Store, snapshot: Snapshot) -> bytes:
    """The state of `store`'s member now."""
    tensors = {f"section.{name}": vector for name, vector in store.sections().items()}
    state, plain = store.optimizer_state()
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
    apart: list[torch.Tensor] = []
    extra = _take_apart(snapshot.extra, apart)
    tensors |= {f"extra.{k}": t.detach().to("cpu", copy=True) for k, t in enumerate(apart)}
    meta = {
        "step": snapshot.step,
        "round": snapshot.round,
        "extra": extra,
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
        extra = _put_together(meta["extra"], _part(tensors, "extra."))
        snapshot = Snapshot(index(meta["step"]), index(meta["round"]), extra)
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


def _take_apart(value: Any, tensors: list[torch.Tensor]) -> Any:
    """It as plain values alone; its tensors are added to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value.contiguous())
        return {_TENSOR: len(tensors) - 1}
    if isinstance(value, dict):
        return {key: _take_apart(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_apart(item, tensors) for item in value]
    return value


def _put_together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Inverse of `_take_apart`; a tuple comes back as a list."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[str(value[_TENSOR])]
        return {key: _put_together(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    return value


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
