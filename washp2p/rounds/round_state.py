"""The state of a round: its plan, what is missing, what has arrived, what was applied.

A round has one leg, or several: a mean has two, and vectors beside the values go in legs of their
own. A *turn* is the number of a round and that of a leg. Turns are ordered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from washp2p.model.device_copies import DeviceCopies, Mark, Places, Vectors
    from washp2p.plan.plan import Plan
    from washp2p.protocol.messages.frames import Frame
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.transports.base import Buffers, Payload

Span = tuple[int, int]
"""The part of a plan's receive route that one sender's values fill: begin, end."""
Part = tuple["MemberId", int, int]
"""A member, and the part of a route that it sends or gets: member, begin, end."""
Turn = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Staged:
    """A plan, its roster, and its indices on the store's device."""

    plan: Plan
    roster: Roster
    send: Places
    receive: Places
    to: Sequence[Part]
    """Who gets which part of the send route."""
    of: Sequence[Part]
    """Who sends which part of the receive route."""

    @property
    def bytes(self) -> int:
        """The bytes that the indices take in host memory."""
        return self.send.host.nbytes + self.receive.host.nbytes

    @property
    def legs(self) -> int:
        """The number of legs: 2 for a mean that members share by shards, else 1."""
        return 2 if self.plan.mean is not None and self.plan.mean.shared else 1


def stage(plan: Plan | None, roster: Roster, copies: DeviceCopies) -> Staged | None:
    """Copy a plan's indices to the device. Runs ahead of need, on the planner's thread."""
    if plan is None:
        return None
    members = roster.members
    return Staged(
        plan,
        roster,
        copies.upload(plan.send.indices),
        copies.upload(plan.receive.indices),
        [(members[position], begin, end) for position, begin, end in plan.send.parts],
        [(members[position], begin, end) for position, begin, end in plan.receive.parts],
    )


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Extra vectors that are sent with a round's values, in a leg of their own. They have the
    parameters' dtype.

    `outgoing` has them by peer; any thread may read them. `incoming` has the number of values
    expected of each peer. `finish` is called once no more vectors will come, with those that came,
    by sender.
    """

    leg: int
    kind: Kind
    fingerprint: int
    outgoing: dict[MemberId, torch.Tensor]
    incoming: dict[MemberId, int]
    finish: Callable[[dict[MemberId, torch.Tensor]], None]


@dataclass(slots=True)
class Leg:
    """All that this member knows of a leg of a round that it has sent, until the leg is over.

    `slots` values are expected for each scalar. `missing` has the senders whose values are still
    expected.
    """

    number: int
    """The number of the round."""
    generation: int
    fingerprint: int
    missing: dict[MemberId, Span]
    leg: int = FIRST
    slots: int = 1
    arrived: dict[MemberId, tuple[Span, Payload]] = field(default_factory=dict)
    """The spans and payloads that have come and are not applied yet, by sender."""
    lost: list[MemberId] = field(default_factory=list)
    """Senders given up since values were last applied."""
    staged: Staged | None = None
    """The plan; None in a leg of extra vectors."""
    own: Vectors = field(default_factory=list)
    """This member's values at the received indices when it gathered, if they are needed."""
    measured: bool = False
    """Whether the leg's values serve to estimate how far the members are apart."""
    beside: Beside | None = None
    """The extra vectors; None in a leg of planned values."""
    turn: Turn = field(init=False)

    def __post_init__(self) -> None:
        self.turn = self.number, self.leg

    @property
    def to_log(self) -> Applied:
        """What to log once the leg is applied: senders of arrived values, senders given up."""
        return Applied(self.number, tuple(self.arrived), tuple(self.lost), self.leg)


class Messages(NamedTuple):
    """One leg's messages, sent once `marks` are done: their values have left the device.

    In `header` the receiver is a placeholder (the sender); `Frame.to` sets it. `parts` has, for
    each message, (peer, planned bytes, buffers).
    """

    marks: Sequence[Mark]
    header: Frame
    parts: Sequence[tuple[MemberId, int, Buffers]]
    kind: Kind = Kind.EXCHANGE


class Applied(NamedTuple):
    """What was applied of one leg: the senders whose values were applied, and those whose values
    never will be.
    """

    round: int
    senders: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]
    leg: int = FIRST
