"""What there is to know of one round: what is to come of it, what has come, what was applied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from washp2p.protocol.messages.frames import FIRST

if TYPE_CHECKING:
    import torch

    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Payload

Span = tuple[int, int]
Turn = tuple[int, int]


@dataclass(slots=True)
class Round:
    """A leg of a round that this member has gathered: what is to come of it, and what has come.

    Of each scalar the values of the first `slots` slots are to come.
    A span is what a sender's values have as their part of the plan's receive route.
    """

    number: int
    generation: int
    fingerprint: int
    missing: dict[MemberId, Span]
    leg: int = FIRST
    slots: int = 0
    arrived: dict[MemberId, tuple[Span, Payload]] = field(default_factory=dict)
    lost: list[MemberId] = field(default_factory=list)

    @property
    def turn(self) -> Turn:
        """Its place among all."""
        return self.number, self.leg


class Applied(NamedTuple):
    """Of one leg of a round: whose values were applied now, and whose never will be."""

    round: int
    senders: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]
    leg: int = FIRST


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Vectors of the parameters' dtype that go beside a round's values, in a leg of their own.

    `outgoing` has them by peer, ready to be read anywhere; `incoming` says of whom how many values
    are to come.
    """

    leg: int
    kind: Kind
    fingerprint: int
    outgoing: dict[MemberId, torch.Tensor]
    incoming: dict[MemberId, int]
