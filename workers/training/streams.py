"""A member's own random streams: torch, NumPy, Python and the data loader's.

They depend only on the run's seed and the MemberId. So a member draws the same numbers in a process
of its own as in one process with its peers.
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
    """A member's own states of the global generators, kept while the member is not active."""

    def __init__(self, seed: int, member: int) -> None:
        self.loader = torch.Generator().manual_seed(key(seed, member, "loader"))
        """For the order of the data and the seeds of loader processes."""
        self._python: Any = random.Random(key(seed, member, "python")).getstate()
        self._numpy: Any = np.random.RandomState(key(seed, member, "numpy") % 2**32).get_state()
        self._torch = torch.Generator().manual_seed(key(seed, member, "torch")).get_state()
        self._active = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, the global generators are this member's."""
        outer = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._install(self._python, self._numpy, self._torch)
        self._active = True
        try:
            yield
        finally:
            self._look()
            self._active = False
            self._install(*outer)

    def state_dict(self) -> dict[str, Any]:
        """The states of all generators but `loader`: plain values and tensors.

        If CUDA is in use, the states of its devices are included.
        """
        if self._active:
            self._look()
        version, words, spare = self._python
        name, keys, *position = self._numpy
        return {
            "python": [version, list(words), spare],
            "numpy": [name, keys.tolist(), *position],
            "torch": self._torch,
            "cuda": _cuda_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Call it only while the streams are not active."""
        version, words, spare = state["python"]
        name, keys, *position = state["numpy"]
        self._python = version, tuple(words), spare
        self._numpy = (name, np.array(keys, dtype=np.uint32), *position)
        self._torch = state["torch"]
        devices = range(torch.cuda.device_count() if state["cuda"] else 0)
        for device, one in zip(devices, state["cuda"], strict=False):
            torch.cuda.set_rng_state(one, device)

    def _look(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()

    @staticmethod
    def _install(python: Any, numpy: Any, torch_state: torch.Tensor) -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
