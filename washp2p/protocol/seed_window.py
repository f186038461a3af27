"""The seeds that a member has received and not used yet. Does no I/O."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError
from washp2p.protocol.roster import SEED_BYTES, Order, roster_at, unpack_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.protocol.messages.from_coordinator import Seeds
    from washp2p.protocol.roster import Roster


class SeedWindow:
    """The seeds of rounds that have not begun, by round.

    The control thread adds them, the training thread reads and deletes them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seeds: dict[int, int] = {}
        self._window = 1
        self._progress_due = 0
        self.until = 0
        """The last round whose seed has arrived."""
        self.reached = 0
        """The last round that has begun, or was left out: seeds up to it are of no use."""

    def __contains__(self, round_number: int) -> bool:
        return round_number in self._seeds

    def take(self, message: Seeds, rosters: Sequence[Roster]) -> None:
        """Keep the seeds of `message`. Raises ProtocolError if its roster is not in `rosters`."""
        roster = next((r for r in reversed(rosters) if r.generation == message.generation), None)
        if (
            roster is None
            or roster.digest() != message.roster
            or message.first < roster.first
            or len(message.seeds) % SEED_BYTES
        ):
            raise ProtocolError("seeds for another roster")
        seeds = unpack_seeds(message.seeds)
        with self._lock:
            self._window = len(seeds)
            for number, seed in enumerate(seeds, start=message.first):
                if number > self.reached:
                    self._seeds[number] = seed
            self.until = max(self.until, message.first + len(seeds) - 1)

    def reach(self, round_number: int) -> bool:
        """Note that a round begins, and delete seeds up to it. Returns whether to ask for more."""
        with self._lock:
            for number in range(self.reached + 1, round_number + 1):
                self._seeds.pop(number, None)
            self.reached = round_number
        if round_number < self._progress_due:
            return False
        self._progress_due = round_number + max(1, self._window // 2)
        return True

    def order_of(self, round_number: int, rosters: Sequence[Roster]) -> Order | None:
        """The inputs of a round's plan; None if its seed has not arrived."""
        seed = self._seeds.get(round_number)
        return None if seed is None else Order(round_number, seed, roster_at(rosters, round_number))
