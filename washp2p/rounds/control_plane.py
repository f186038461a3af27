"""What the rounds of a member need of its connection to the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId, Peer, Roster
    from washp2p.protocol.seed_window import Seedbook


class ControlPlane(Protocol):
    """The part of `coordinator_link.connection.Connection` that rounds use. Nothing blocks."""

    member: MemberId
    run: bytes
    place: str
    patience: Patience
    rosters: list[Roster]
    seeds: Seedbook
    changes: int

    @property
    def roster(self) -> Roster:
        """The newest roster."""

    def check(self) -> None:
        """Raise RunStoppedError if this member's run is over."""

    def take_guests(self) -> list[Peer]:
        """Newcomers that will ask for a snapshot; each is returned once."""

    def stalled(self, member: MemberId, *, broken: bool = False) -> None:
        """Report that this member has waited too long for `member`."""

    def cut_off(self, member: MemberId, what: str) -> None:
        """Report that this member refuses all messages of `member` from now on."""

    def diverged(self, member: MemberId) -> None:
        """Report that `member` sends values that are not finite."""

    def checkpoint_from(self, round_number: int) -> int | None:
        """The first round from `round_number` on after which a checkpoint is due."""

    def reached(self, round_number: int) -> None:
        """Note that `round_number` begins."""

    def progress(self, rounds: int) -> None:
        """Report that `rounds` rounds are done."""
