"""Digests of a member's tensors. Tensors that are equal on two members need not be sent.

A digest is the tensor's BLAKE2b-128 and whether all of its values are finite: 17 bytes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from washp2p.model.device_copies import as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from washp2p.model.store import State

DIGEST_BYTES = 16
ROW_BYTES = DIGEST_BYTES + 1


def digests_of(state: State) -> bytes:
    """A digest for each tensor of `state`, in its order. Tensors are contiguous CPU vectors."""
    return b"".join(digest(vector) + bytes([all_finite(vector)]) for vector in state.values())


def digest(vector: torch.Tensor) -> bytes:
    """The digest of one tensor."""
    return hashlib.blake2b(as_bytes(vector), digest_size=DIGEST_BYTES).digest()


def all_finite(vector: torch.Tensor) -> bool:
    """Whether every value is finite."""
    if not (vector.is_floating_point() or vector.is_complex()):
        return True
    wide = vector.float() if vector.element_size() == 1 else vector
    return bool(wide.isfinite().all())


def differing(names: Iterable[str], rows: Iterable[bytes]) -> list[str]:
    """The indices of tensors whose digests differ between members. Each element of `rows` has
    one member's digests.
    """
    every = [_split(row) for row in rows]
    return [
        name
        for place, name in enumerate(names)
        if len({parts[place][:DIGEST_BYTES] for parts in every}) > 1
    ]


def not_finite_alone(names: Iterable[str], rows: Mapping[int, bytes]) -> dict[int, str]:
    """By member, the index of a tensor that is not finite there, though it is finite on another
    member.
    """
    found: dict[int, str] = {}
    every = {member: _split(row) for member, row in rows.items()}
    for place, name in enumerate(names):
        flags = {member: parts[place][-1] for member, parts in every.items()}
        if any(flags.values()):
            found |= {m: name for m, finite in flags.items() if not finite and m not in found}
    return found


def _split(row: bytes) -> list[bytes]:
    return [row[k : k + ROW_BYTES] for k in range(0, len(row), ROW_BYTES)]
