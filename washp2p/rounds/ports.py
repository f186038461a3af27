"""What a member's core needs around it: the coordinator, plans, an outbox and a log.

A driver gives the core objects with these methods. None of the methods blocks for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.protocol.run_state import RunState
    from washp2p.rounds.round_state import Messages, Staged
    from washp2p.runfolder.runlog import Joined, Jump, Record


class ControlPlane(Protocol):
    """The part of `coordinator_link.conversation.Conversation` that a core uses."""

    run: bytes
    origin: bytes
    config: RunConfig
    resumes: bool
    place: str
    patience: Patience
    state: RunState

    @property
    def member(self) -> MemberId:
        """The member's id."""

    def check(self) -> None:
        """Raise RunStoppedError if this member's run is over."""

    def tell(self, message: Message) -> None:
        """Send a message to the coordinator."""

    def reached(self, round_number: int) -> None:
        """Note that `round_number` begins."""

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""

    def saved(self, round_number: int, error: str) -> None:
        """Report a checkpoint of `round_number`: saved if `error` is empty, else why it is not."""


class Plans(Protocol):
    """The plans of the rounds to come. `driver.planner.Planner` has these methods."""

    def take(self, number: int) -> Staged | None:
        """The plan of round `number`, whose seed has arrived; None if nothing is exchanged."""

    def prepare(self, number: int = 1) -> None:
        """Expect round `number` to be this member's first one."""


class Outbox(Protocol):
    """Sends rounds, as `driver.outbox.DeviceOutbox` does."""

    def post(self, messages: Messages) -> None:
        """Send a leg's messages, after all posted before, once its marks are done."""

    def flush(self) -> None:
        """Return once everything posted has been sent."""


class Log(Protocol):
    """The run log, as `runfolder.runlog.RunLog` writes it."""

    def append(self, records: Sequence[Record | Jump | Joined]) -> None:
        """Write records. Messages that depend on the logged values may be sent afterwards."""

    def keep(self) -> tuple[int, bool]:
        """Flush the log to disk. Returns its length in bytes, and whether all writes succeeded."""

    def go_back(self, size: int, whole: bool) -> None:
        """Cut the log to `size` bytes; `size` and `whole` are what `keep` returned."""

    def finish(self) -> None:
        """Write the checksum: the member has finished."""
