"""A snapshot: one member's whole state after one of its steps, as bytes.

It has parameters and buffers, the optimizer's state, the round and the number of steps. Newcomers
begin with it, and checkpoints contain it. The format is safetensors, so nothing in it can be code.
A snapshot names its member, run and round, and has a checksum.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from washp2p.errors import ProtocolError
from washp2p.model.digests import digest
from washp2p.model.optimizers import put_together, take_apart

if TYPE_CHECKING:
    import torch

    from washp2p.model.store import State, Store

_META = "washp2p"
CHECKSUM_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a snapshot says of its member: run, number, steps, last round, and `extra` values.

    `extra` has plain values (JSON's) and tensors on any device. After reading, its tensors are on
    the CPU.
    """

    run: bytes
    member: int
    step: int
    round: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A snapshot that has been read and whose checksum is right. A member has not used it yet."""

    snapshot: Snapshot
    tensors: State
    optimizer: Any
    highest_lr: float
    frozen: dict[str, bytes]
    """By name, digests of frozen parameters that were left out.

    A member whose own values have other digests must get the values elsewhere.
    """

    def lacks(self, store: Store) -> list[str]:
        """Names of the left-out tensors for which `store` does not have the donor's values."""
        if not self.frozen:
            return []
        own = store.values()
        return [
            name for name, d in self.frozen.items() if name not in own or digest(own[name]) != d
        ]


def take(store: Store, snapshot: Snapshot, *, frozen: bool = True) -> bytes:
    """The bytes of a snapshot of `store`'s member as it is now.

    Without `frozen`, the snapshot has digests in place of the frozen parameters. Raises TypeError
    if some of the state cannot be written to a file.
    """
    tensors = {f"model.{name}": v for name, v in store.values(frozen=frozen).items()}
    state, plain = store.optimizer_state()
    tensors |= {f"optimizer.{k}": t.cpu().contiguous() for k, t in enumerate(state)}
    apart: list[torch.Tensor] = []
    extra = take_apart(snapshot.extra, apart)
    tensors |= {f"extra.{k}": t.cpu().contiguous() for k, t in enumerate(apart)}
    whole = {} if frozen else store.values()
    meta = {
        "run": snapshot.run.hex(),
        "member": snapshot.member,
        "step": snapshot.step,
        "round": snapshot.round,
        "extra": extra,
        "optimizer": plain,
        "highest_lr": store.learning_rate.highest,
        "frozen": {} if frozen else {n: digest(whole[n]).hex() for n in store.frozen},
    }
    owned = {name: tensor.clone() for name, tensor in tensors.items()}  # each its own storage
    data: bytes = save(owned, {_META: json.dumps(meta)})
    return data + _checksum(data)


def open_snapshot(data: bytes) -> Opened:
    """Read a snapshot. Raises ProtocolError if `data` is damaged or is no snapshot."""
    whole, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(whole) != checksum:
        raise ProtocolError(
            f"it is damaged: {len(data)} bytes whose checksum is wrong (or of an older version)"
        )
    try:
        return _opened(load(whole), json.loads(_metadata(whole)))
    except (ValueError, KeyError, RecursionError, SafetensorError) as error:
        # KeyError: safetensors', for a dtype that it does not know
        raise ProtocolError(f"not a snapshot: {error!r:.200}") from None


def restore(store: Store, opened: Opened, more: State | None = None) -> None:
    """Set `store`'s member to the state in `opened`. Layout and optimizer must be equal.

    `more` has the tensors that the snapshot leaves out. Raises ProtocolError if the state does not
    fit.
    """
    try:
        store.load_values(_part(opened.tensors, "model.") | (more or {}))
        store.load_optimizer_state(_part(opened.tensors, "optimizer."), opened.optimizer)
        store.learning_rate.highest = opened.highest_lr
    except ValueError as error:
        raise ProtocolError(f"not a snapshot of such a member: {error!s:.300}") from error


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _opened(tensors: dict[str, torch.Tensor], meta: object) -> Opened:
    """The snapshot that `meta` describes. Raises ValueError if `meta` is not as `take` wrote it."""
    match meta:
        case {
            "run": str(run),
            "member": int(member),
            "step": int(step),
            "round": int(round_),
            "extra": plain,
            "optimizer": optimizer,
            "highest_lr": float(highest_lr),
            "frozen": dict(frozen),
        }:
            extra = put_together(plain, _part(tensors, "extra."))
        case _:
            raise ValueError(f"its description is {meta!r:.100}")
    if not isinstance(extra, dict) or not all(isinstance(d, str) for d in frozen.values()):
        raise ValueError(f"it has {extra!r:.100} and {frozen!r:.100}")
    where = Snapshot(run=bytes.fromhex(run), member=member, step=step, round=round_, extra=extra)
    digests = {name: bytes.fromhex(text) for name, text in frozen.items()}
    return Opened(where, tensors, optimizer, highest_lr, digests)


def _metadata(data: bytes) -> str:
    """The text that `take` stored beside the tensors of the safetensors file `data`."""
    length = int.from_bytes(data[:8], "little")
    match json.loads(data[8 : 8 + length]):
        case {"__metadata__": {"washp2p": str(text)}}:
            return text
    raise ValueError("no member wrote it")
