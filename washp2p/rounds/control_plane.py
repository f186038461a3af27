"""What the rounds of a member need of its connection to the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.protocol.run_state import RunState


class ControlPlane(Protocol):
    """The part of `coordinator_link.connection.Connection` that rounds use. Nothing blocks."""

    run: bytes
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
