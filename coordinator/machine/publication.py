"""What the coordinator has published of a run: seeds, and which rounds have checkpoints.

Seeds are published in windows, ahead of the fastest member, so that no member waits for one. A
window holds as many rounds as take about a second, but no more than 256, and no more than 5 % of
the run. It holds at least 8, unless the run ends earlier. No I/O; the caller passes the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.protocol.messages.from_coordinator import Checkpoint, Seeds
from washp2p.protocol.roster import by_roster, pack_seeds, round_seed, run_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from washp2p.config.config import RunConfig
    from washp2p.protocol.roster import Roster

SMALLEST, LARGEST = 8, 256
SHARE = 20
AHEAD = 2
"""The number of windows that are published beyond the fastest member's round."""


class SeedWindows:
    """The windows published so far. `rounds` is the length of the run, 0 if not known."""

    def __init__(self, rounds: int, published: int = 0) -> None:
        self._rounds = rounds
        self.published = published

    def due(self, fastest: int, rounds_per_second: float) -> range:
        """Return the next window of rounds to publish, and count it as published.

        If no window is due, the range is empty. Call this until the range is empty.
        """
        window = min(max(SMALLEST, round(rounds_per_second)), LARGEST)
        if self._rounds:
            window = min(window, max(SMALLEST, self._rounds // SHARE))
        if self.published >= fastest + AHEAD * window:
            return range(0)
        first = self.published + 1
        last = self.published + window
        if self._rounds:
            last = min(last, self._rounds)
        self.published = max(self.published, last)
        return range(first, last + 1)


class Publication:
    """The seeds and checkpoints of a run. `rounds` is its length, 0 if not known.

    Seeds are published up to round `published`. `planned` has the rounds of checkpoints that not
    all members hold yet. `failed` has those of them that some member could not save, so that they
    are never complete. `fastest` is the last round of the fastest member.
    """

    def __init__(
        self,
        config: RunConfig,
        rounds: int = 0,
        *,
        published: int = 0,
        planned: Iterable[int] = (),
        failed: Iterable[int] = (),
        fastest: int = 0,
    ) -> None:
        self._config = config
        self._rounds = rounds
        self._key = run_key(config.seed)
        self._windows = SeedWindows(rounds, published)
        self.planned = list(planned)
        self.failed = set(failed)
        self.begun = False
        """Whether `begin` has been called, so that seeds may be published."""
        self._fastest = fastest
        self._pace = (0, 0.0)
        self._kept_at = 0.0

    @property
    def published(self) -> int:
        """The last round whose seed is published."""
        return self._windows.published

    def begin(self, now: float) -> None:
        """Allow seeds to be published from now on. `now` is in seconds, of any steady clock."""
        self.begun = True
        self._pace = (self._fastest, now)
        self._kept_at = now

    def reach(self, rounds: int, now: float) -> bool:
        """Note that a member has done `rounds` rounds. Returns whether it is the first to do so."""
        if not self.begun or rounds <= self._fastest:
            return False
        if not self._fastest:
            self._pace = (rounds, now)  # of a run gone on with: where it is now
        self._fastest = rounds
        return True

    def due(self, now: float) -> range:
        """Return the rounds whose seeds are due now, and plan the checkpoints among them.

        Call again until the range is empty.
        """
        rounds, since = self._pace
        elapsed = now - since
        rate = (self._fastest - rounds) / elapsed if elapsed > 0 else 0.0
        window = self._windows.due(self._fastest, rate)
        if window:
            self._plan(window, now)
        return window

    def complete(self, number: int) -> None:
        """Note that all members hold the checkpoint of round `number`: no earlier one is needed."""
        self.planned = [later for later in self.planned if later > number]
        self.failed &= set(self.planned)

    def messages(self, rosters: Sequence[Roster], rounds: range) -> Iterator[Checkpoint | Seeds]:
        """The messages that publish `rounds`: all Checkpoints, then Seeds for each generation."""
        yield from (Checkpoint(number) for number in self.planned if number in rounds)
        for roster, numbers in by_roster(rosters, rounds):
            seeds = pack_seeds([round_seed(self._key, number) for number in numbers])
            yield Seeds(roster.generation, roster.digest(), numbers.start, seeds)

    def _plan(self, window: range, now: float) -> None:
        """Choose the rounds of `window` after which members keep a checkpoint."""
        config, due = self._config, set()
        if config.operation.checkpoint_epochs and self._rounds:
            pace = self._rounds * config.operation.checkpoint_epochs / config.training.epochs
            first = max(1, int(window.start / pace))
            marks = (round(k * pace) for k in range(first, int(window.stop / pace) + 2))
            due = {mark for mark in marks if mark in window}
        if (
            config.operation.checkpoint_minutes
            and now - self._kept_at >= 60 * config.operation.checkpoint_minutes
        ):
            due.add(window.stop - 1)
        if due:
            self._kept_at = now
            self.planned.extend(sorted(due))
