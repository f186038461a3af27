"""What several test modules share: layouts, and addresses that no other test uses."""

from __future__ import annotations

import signal
import time
from itertools import count

import pytest
import torch

from washp2p.protocol.layout import Entry, Layout, Slot, aligned
from washp2p.protocol.refusals import Refusals

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, by all
torch.set_num_threads(1)  # results to the bit depend on it; workers are tested with one thread too


def make_layout(layers, slots=("param",), dtype="float32"):
    """A layout from parameter sizes by layer, e.g. [[9, 3], [12]]."""
    entries = []
    offset = 0
    for layer, sizes in enumerate(layers):
        for number, size in enumerate(sizes):
            offset = aligned(offset, 4)
            entries.append(
                Entry(
                    name=f"{layer}.{number}", shape=(size,), stride=(1,), layer=layer, offset=offset
                )
            )
            offset += size
    return Layout(tuple(entries), tuple(Slot(name=name, dtype=dtype) for name in slots))


class RecordedRefusals(Refusals):
    """Remembers each refused message: (peer, reason, detail)."""

    def __init__(self, burst=10**9):
        super().__init__(rate=1, burst=burst, tell=lambda text: None, clock=time.monotonic)
        self.all = []

    def refuse(self, peer, reason, detail, *, cost=1):
        self.all.append((peer, reason, detail))
        super().refuse(peer, reason, detail, cost=cost)

    @property
    def reasons(self):
        return [reason for _, reason, _ in self.all]


_numbers = count()


@pytest.fixture
def memory_address():
    return lambda: f"memory://{next(_numbers)}"
