"""What a simulated process has in place of files and of a planner's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from washp2p.coordinator_link.conversation import Conversation
    from washp2p.member.derivation import Derivation
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.round_state import Staged
    from washp2p.runfolder.runlog import Joined, Jump, Record


class Host:
    """What a machine keeps of a run: it outlives the processes there."""

    def __init__(self, clock: float) -> None:
        self.checkpoints: dict[tuple[int, MemberId], bytes] = {}
        """By round and member."""
        self.logs: dict[MemberId, list[Record | Jump | Joined]] = {}
        """The records of each member's run log."""
        self.diverges = False
        """Whether the models trained here are no numbers after each step."""
        self.diverged_after: dict[MemberId, int] = {}
        """By member that was trained so: the first such step."""
        self.full = False
        """Whether there is no room for a checkpoint."""
        self.logs_full = False
        """Whether there is no room for a record of a log."""
        self.clock = clock
        """By how many seconds its clock is ahead of virtual time."""
        self.busy = 0.0
        """Seconds by which the next step here is delayed, after a report that it is busy."""
        self.slow = 0.0
        """The same, without a report."""

    def forget(self, rounds: range) -> None:
        """Delete the checkpoints of these rounds."""
        self.checkpoints = {k: data for k, data in self.checkpoints.items() if k[0] not in rounds}


class Resumed(NamedTuple):
    """The state that a process has read from its checkpoint, after its own `step` in `round`."""

    round: int
    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]


class MemoryLog:
    """The run log of `member` on `host`. `acts` is called before and after each write."""

    def __init__(self, acts: Callable[[], None], host: Host, member: MemberId) -> None:
        self._acts = acts
        self._host = host
        self.records = host.logs.setdefault(member, [])
        """What was written, in order."""
        self.whole = False
        """Whether the member has finished."""
        self.has_gap = False
        """Whether a record could not be written. Later ones are not written, either."""
        self._lasting = len(self.records)

    def append(self, records: Sequence[Record | Jump | Joined]) -> None:
        """Write records."""
        self._acts()
        self.has_gap = self.has_gap or self._host.logs_full
        if not self.has_gap:
            self.records += records
        self._acts()

    def keep(self) -> tuple[int, bool]:
        """Make the records last. Returns their number, and that all were written."""
        self._lasting = len(self.records)
        return self._lasting, not self.has_gap

    def lose_power(self, random: Random) -> None:
        """Lose what was written since `keep`, or the end of it."""
        del self.records[random.randint(self._lasting, len(self.records)) :]

    def go_back(self, size: int, whole: bool) -> None:
        """Drop all but the first `size` records."""
        del self.records[size:]
        self._lasting = size
        self.has_gap = not whole

    def finish(self) -> None:
        """Note that the member has finished."""
        self.whole = True


class MemoryFolder:
    """The checkpoints of `member` on `host`."""

    def __init__(self, host: Host, member: MemberId, acts: Callable[[], None]) -> None:
        self._host = host
        self._member = member
        self._acts = acts

    def name(self, round_number: int) -> str:
        """What the checkpoint of a round is called."""
        return f"checkpoint {round_number}"

    def read(self, round_number: int) -> bytes:
        """The checkpoint of a round."""
        return self._host.checkpoints[round_number, self._member]

    def write(self, round_number: int, data: bytes) -> None:
        """Keep the checkpoint of a round. Raises UsageError if the host has no room."""
        self._acts()
        if self._host.full:
            raise UsageError(f"cannot write {self.name(round_number)}: No space left on device")
        self._host.checkpoints[round_number, self._member] = data
        self._acts()

    def forget(self, rounds: range) -> None:
        """Delete the checkpoints of these rounds."""
        self._host.forget(rounds)


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
