"""What a member's core needs of its connection to the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from washp2p.config.config import RunConfig
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.protocol.run_state import RunState


class ControlPlane(Protocol):
    """The part of `coordinator_link.connection.Connection` that a core uses. Nothing blocks."""

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
        """Report a checkpoint of `round_number`: held if `error` is empty, else why it is not."""
