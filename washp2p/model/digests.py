"""Digests of a member's tensors. A tensor that is equal on two members need not be sent.

`digests_of` gives 17 bytes for each tensor: its BLAKE2b-128 hash, and 1 if all of its values are
finite, else 0.
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
    """The digests of all tensors of `state`, in its order, one after the other.

    Each tensor must be a contiguous CPU vector.
    """
    return b"".join(digest(vector) + bytes([all_finite(vector)]) for vector in state.values())


def digest(vector: torch.Tensor) -> bytes:
    """The BLAKE2b-128 hash (16 bytes) of one contiguous CPU vector."""
    return hashlib.blake2b(as_bytes(vector), digest_size=DIGEST_BYTES).digest()


def all_finite(vector: torch.Tensor) -> bool:
    """Whether every value is finite."""
    if not (vector.is_floating_point() or vector.is_complex()):
        return True
    wide = vector.float() if vector.element_size() == 1 else vector
    return bool(wide.isfinite().all())


def differing(names: Iterable[str], rows: Iterable[bytes]) -> list[str]:
    """The names of the tensors whose hashes differ between members.

    `names` has the tensors' names in order. Each element of `rows` has one member's digests.
    """
    every = [_split(row) for row in rows]
    return [
        name
        for place, name in enumerate(names)
        if len({parts[place][:DIGEST_BYTES] for parts in every}) > 1
    ]


def not_finite_alone(names: Iterable[str], rows: Mapping[int, bytes]) -> dict[int, str]:
    """By member, the first tensor that is not finite on it, but is on some other member.

    Members without such a tensor are left out. `rows` has each member's digests. `names` has the
    tensors' names in order.
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
