"""The ledger: every byte that a member sends on its data plane, by peer, kind and wire.

Only transports add to it; reports and tests read it. The payload is the values. The header is this
project's framing around them. Bytes that ZeroMQ and TCP add are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from washp2p.protocol.roster import MemberId


WIRES = ("tcp", "ipc", "gloo", "nccl", "memory")
"""The kinds of connection that may carry values."""


class Kind(StrEnum):
    """The purpose of a message."""

    EXCHANGE = "exchange"
    REPAIR = "repair"
    CONSENSUS = "consensus"
    STATE = "state transfer"
    AVERAGE = "final average"


class Loss(StrEnum):
    """Reasons why values were lost: they never arrived, or were useless when they did."""

    GONE = "sender dropped"
    LINK = "link broken"
    LATE = "too late"
    SKIPPED = "sender skipped the round"
    JUMPED = "receiver skipped the round"
    REFUSED = "refused"
    EARLY = "too early"


class Channel(NamedTuple):
    """What sent bytes are counted by: receiver `peer`, purpose `kind`, `wire` (one of WIRES)."""

    peer: MemberId
    kind: Kind
    wire: str


@dataclass
class Count:
    """Bytes and messages sent over one link. `expected` is the payload that plans foresaw."""

    payload: int = 0
    header: int = 0
    messages: int = 0
    expected: int = 0


class Ledger:
    """What one member has sent. Not locked: its transport sends one message at a time.

    >>> ledger = Ledger()
    >>> ledger.sent(Channel(1, Kind.EXCHANGE, "tcp"), header=28, payload=400, expected=400)
    >>> ledger.total(Kind.EXCHANGE)
    Count(payload=400, header=28, messages=1, expected=400)
    """

    def __init__(self) -> None:
        self.counts: defaultdict[Channel, Count] = defaultdict(Count)

    def sent(self, link: Channel, header: int, payload: int, *, expected: int = 0) -> None:
        """Count one message over `link`, of `header` and `payload` bytes.

        The plan foresaw `expected` bytes of payload.
        """
        count = self.counts[link]
        count.header += header
        count.payload += payload
        count.messages += 1
        count.expected += expected

    def total(self, kind: Kind) -> Count:
        """The sum of all messages of one `kind`, over all peers."""
        counts = [count for link, count in self.counts.items() if link.kind is kind]
        return Count(
            *(sum(getattr(c, field) for c in counts) for field in Count.__dataclass_fields__)
        )

    def load(self, rows: list[dict[str, Any]]) -> None:
        """Add the counts in `rows`, as `to_wire` makes them.

        Raises ValueError if a row is malformed, or its link has counts already.
        """
        for row in rows:
            match row:
                case {"peer": int(peer), "kind": str(kind), "wire": str(wire), **count}:
                    link = Channel(peer, Kind(kind), wire)
                case _:
                    raise ValueError(f"not counts: {row!r:.100}")
            if (
                link in self.counts
                or link.wire not in WIRES
                or count.keys() != Count.__dataclass_fields__.keys()
                or not all(type(n) is int and n >= 0 for n in (peer, *count.values()))
            ):
                raise ValueError(f"not counts: {row!r:.100}")
            self.counts[link] = Count(**count)

    def to_wire(self) -> list[dict[str, Any]]:
        """One row of plain values for each link, ordered."""
        return [
            {"peer": link.peer, "kind": link.kind.value, "wire": link.wire, **vars(count)}
            for link, count in sorted(self.counts.items())
        ]
