"""The commands of the membership state machine. `service/server.py` carries them out, in order.

A Keep comes before each message that depends on it. So the entry is on disk before any worker gets
the message, unless the journal cannot be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.machine.members import Departed, KnownMember
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.roster import MemberId, Roster


@dataclass(frozen=True)
class Send:
    """Send a message to one worker."""

    identity: bytes
    message: Message


@dataclass(frozen=True)
class AppendMetrics:
    """Append a line to metrics.jsonl."""

    values: dict[str, Any]


@dataclass(frozen=True)
class AppendConsensus:
    """Append a line to consensus.jsonl: a survey is complete."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Write `what` into the journal: a member, a departed member, a roster or a named value."""

    what: KnownMember | Departed | Roster | tuple[str, Any]


@dataclass(frozen=True)
class Rewind:
    """Set the run back to this round: it goes on from the checkpoint of the round.

    The journal and the metrics drop their later entries. The journal drops them in the transaction
    that writes the next entries.
    """

    round: int


@dataclass(frozen=True)
class Started:
    """The run starts with these `members`. Write them into config.json."""

    members: tuple[KnownMember, ...]


@dataclass(frozen=True)
class Reserve:
    """Reserve disk space for the summary, now that all members have finished.

    If there is too little, `Membership.has_room` becomes False.
    """


@dataclass(frozen=True)
class Reject:
    """Count a message that cannot be true, and reduce the worker's allowance of messages."""

    identity: bytes
    what: str


class What(StrEnum):
    """The kinds of events, for programs that read logs."""

    LISTENING = "listening"
    WAITING = "waiting"
    JOINED = "joined"
    REJOINED = "rejoined"
    REFUSED = "refused"
    SNAPSHOT = "snapshot"
    LAYERS = "layers"
    ENTERED = "entered"
    BEGUN = "begun"
    GOES_ON = "goes on"
    AWAY = "away"
    BACK = "back"
    DROPPED = "dropped"
    CHECKPOINT = "checkpoint"
    NO_CHECKPOINT = "no checkpoint"
    DISK = "disk"
    NOTICE = "notice"
    METRICS = "metrics"
    ENDED = "ended"


@dataclass(frozen=True)
class Event:
    """Show an event: `text` is for people, the other fields are for programs."""

    text: str
    what: What
    member: MemberId | None = None


@dataclass(frozen=True)
class EndRun:
    """The run is over. Exit code 0 means that all members finished; then the summary is written."""

    reason: str
    code: int


Command = (
    Send
    | AppendMetrics
    | AppendConsensus
    | Keep
    | Rewind
    | Started
    | Reserve
    | Reject
    | Event
    | EndRun
)
