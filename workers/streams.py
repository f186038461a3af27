"""A member's own random streams: torch, NumPy, Python and the data loader's.

Keyed by run seed and MemberId alone, so a member draws the same numbers in a process of its own
and beside its peers in one.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def key(seed: int, member: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of one member."""
    text = f"{seed}:{member}:{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Streams:
    """The global generators' states as this member has left them."""

    def __init__(self, seed: int, member: int) -> None:
        self.loader = torch.Generator().manual_seed(key(seed, member, "loader"))
        """For the order of the data and the seeds of loader processes."""
        self._python: Any = random.Random(key(seed, member, "python")).getstate()
        self._numpy: Any = np.random.RandomState(key(seed, member, "numpy") % 2**32).get_state()
        self._torch = torch.Generator().manual_seed(key(seed, member, "torch")).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block the global generators are this member's."""
        outer = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._install(self._python, self._numpy, self._torch)
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            self._torch = torch.get_rng_state()
            self._install(*outer)

    @staticmethod
    def _install(python: Any, numpy: Any, torch_state: torch.Tensor) -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
