"""The state of one round: what is missing, what has arrived, what was applied, what is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import FIRST

if TYPE_CHECKING:
    import torch

    from washp2p.model.device_copies import Mark
    from washp2p.protocol.messages.frames import Frame
    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffers, Payload

Span = tuple[int, int]
Turn = tuple[int, int]


@dataclass(slots=True)
class Round:
    """A leg of a round that this member has gathered: what has arrived of it, and what is
    missing.

    `slots` values are expected for each scalar. A span is the part of the plan's receive route that
    one sender's values fill.
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
        """Round and leg."""
        return self.number, self.leg


class Messages(NamedTuple):
    """One leg's messages, sent once `marks` are reached.

    `header` names the sender in the receiver's place until `Frame.to`. `parts` has, for each
    message, (peer, planned bytes, buffers).
    """

    marks: list[Mark]
    header: Frame
    parts: list[tuple[MemberId, int, Buffers]]
    kind: Kind = Kind.EXCHANGE


class Applied(NamedTuple):
    """What was applied of one leg: the senders whose values were applied, and those whose values
    never will be.
    """

    round: int
    senders: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]
    leg: int = FIRST


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Extra vectors that are sent with a round's values, in a leg of their own. They have the
    parameters' dtype.

    `outgoing` has them by peer; any thread may read them. `incoming` has the number of values
    expected of each peer.
    """

    leg: int
    kind: Kind
    fingerprint: int
    outgoing: dict[MemberId, torch.Tensor]
    incoming: dict[MemberId, int]
