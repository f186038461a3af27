"""What a simulated process has in place of files and of a planner's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.coordinator_link.conversation import Conversation
    from washp2p.member.derivation import Derivation
    from washp2p.rounds.round_state import Staged
    from washp2p.runfolder.runlog import Joined, Jump, Record


class MemoryLog:
    """A run log in memory. `acts` is called before and after each write."""

    def __init__(self, acts: Callable[[], None]) -> None:
        self._acts = acts
        self.records: list[Record | Jump | Joined] = []
        """What was written, in order."""
        self.whole = False
        """Whether the member has finished."""

    def append(self, records: Sequence[Record | Jump | Joined]) -> None:
        """Write records."""
        self._acts()
        self.records += records
        self._acts()

    def keep(self) -> tuple[int, bool]:
        """The number of records, and that all were written."""
        return len(self.records), True

    def go_back(self, size: int, whole: bool) -> None:
        """Drop all but the first `size` records."""
        del self.records[size:]

    def finish(self) -> None:
        """Note that the member has finished."""
        self.whole = True


class MemoryFolder:
    """A member's checkpoints in memory."""

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        """By round."""

    def name(self, round_number: int) -> str:
        """What the checkpoint of a round is called."""
        return f"checkpoint {round_number}"

    def read(self, round_number: int) -> bytes:
        """The checkpoint of a round."""
        return self.kept[round_number]

    def write(self, round_number: int, data: bytes) -> None:
        """Keep the checkpoint of a round."""
        self.kept[round_number] = data

    def forget(self, rounds: range) -> None:
        """Delete the checkpoints of these rounds."""
        self.kept = {n: data for n, data in self.kept.items() if n not in rounds}


class DirectPlans:
    """Derives each plan when it is taken."""

    def __init__(self, derivation: Derivation, conversation: Conversation) -> None:
        self._derivation = derivation
        self._conversation = conversation

    def take(self, number: int) -> Staged | None:
        """The plan of round `number`."""
        order = self._conversation.order_of(number)
        assert order is not None
        return self._derivation(order)

    def prepare(self, number: int = 1) -> None:
        """Do nothing: plans are derived when they are taken."""
