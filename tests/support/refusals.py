"""Refusals that remember."""

from __future__ import annotations

import time

from washp2p.protocol.refusals import Refusals


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
