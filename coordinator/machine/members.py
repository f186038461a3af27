"""What the coordinator knows about each worker: values only. `service/journal.py` stores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Any

from washp2p.protocol.roster import Peer

if TYPE_CHECKING:
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.messages.from_worker import Finished
    from washp2p.protocol.roster import MemberId, Roster


class Phase(IntEnum):
    """How far a member has come. Each phase includes those before it."""

    WELCOMED = 0
    ATTACHED = 1
    ENROLLED = 2
    """In the roster."""
    FINISHED = 3
    ACCOUNTED = 4


@dataclass
class KnownMember:
    """One worker of the run."""

    id: MemberId
    identity: bytes
    host: str
    pid: int
    phase: Phase = Phase.WELCOMED
    layout: Layout | None = None
    endpoint: str = ""
    near: tuple[str, ...] = ()
    place: str = ""
    """Where its process runs. Peers at the same place can reach it at the addresses `near`."""
    key: bytes = b""
    """The public key of its data plane; empty where links are in plain text."""
    versions: dict[str, Any] = field(default_factory=dict)
    rounds: int = 0
    synced: int = -1
    """The generation whose initial state it holds."""
    averaging: tuple[int, int] = (0, 0)
    """Which average it has begun last, and after which round."""
    averaged: tuple[int, int] = (-1, 0)
    """The last average that it holds: the generation averaged over, and the average's number."""
    ready: bool = False
    """It holds a snapshot, and waits for a place in the roster."""
    useless: dict[MemberId, str] = field(default_factory=dict)
    """Donors whose snapshots it has refused, and why."""
    busy_until: float = 0.0
    """Until when its training loop is busy with something else. Others wait for it until then."""
    heard_at: float = -inf
    """When its training thread has last said something."""
    no_snapshots: str = ""
    """Why its optimizer's state cannot be given to others; empty if it can."""
    saved: set[int] = field(default_factory=set)
    """Rounds of which it holds a checkpoint, among those that the run may go on from."""
    donor: MemberId | None = None
    """Whose snapshot it fetches."""
    finished: Finished | None = None
    counts: list[Any] = field(default_factory=list)
    away_until: float | None = None
    """None while it is connected, else the time until which it is waited for."""

    @property
    def connected(self) -> bool:
        """Whether messages can reach this worker, as far as is known."""
        return self.away_until is None

    @property
    def peer(self) -> Peer:
        """The member as its peers see it."""
        return Peer(self.id, self.endpoint, self.host, self.key, self.near, self.place)

    def fetches_from(self, other: MemberId) -> bool:
        """Whether the member is a newcomer that waits for a snapshot of `other`."""
        return self.phase is Phase.ATTACHED and self.donor == other

    def __str__(self) -> str:
        """The member's name in messages to people."""
        return f"member {self.id} ({self.host}, process {self.pid})"


@dataclass(frozen=True)
class Departed:
    """A former member that was dropped."""

    member: MemberId
    host: str
    reason: str
    round: int
    """The first round whose roster is without it."""
    pid: int = 0
    """Its process, 0 if not known."""


@dataclass(frozen=True)
class Past:
    """The content of a journal: enough to go on with its run."""

    members: tuple[KnownMember, ...]
    departed: tuple[Departed, ...]
    rosters: tuple[Roster, ...]
    life: int
    """The first generation since the run began, or last went on from a checkpoint."""
    published: int
    planned: tuple[int, ...]
    failed: tuple[int, ...]
    """Of the planned checkpoints, those that some member could not save."""
    kept: tuple[int, list[MemberId]]
    """The round of the last complete checkpoint (0: there is none), and who holds it."""
    total_rounds: int
    given: frozenset[MemberId]
    """All ids there have been."""
    settled: Roster | None
    averages: list[int]
    """The number of averages, then for each member the round after which it took the last one."""
    notices: list[Any]
    accuracy: dict[str, Any]
