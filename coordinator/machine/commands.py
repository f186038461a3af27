"""What the membership state machine may order; `server.py` carries it out, in order.

What is to be kept comes before what is sent because of it: on disk before it is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.machine.members import Departed, Member
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.roster import MemberId, Roster


@dataclass(frozen=True)
class Send:
    """Send a message to one worker."""

    identity: bytes
    message: Message


@dataclass(frozen=True)
class Record:
    """Append a line to metrics.jsonl."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Append a line to consensus.jsonl: a survey is complete."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Put this into the journal: a member as it is now, one dropped, a new roster, or a fact."""

    what: Member | Departed | Roster | tuple[str, Any]


@dataclass(frozen=True)
class Rewind:
    """The run goes on from this round: journal and metrics forget what came after it.

    The journal does so together with what is kept next.
    """

    round: int


@dataclass(frozen=True)
class Started:
    """The population is complete: keep in config.json who it is."""

    members: tuple[Member, ...]


@dataclass(frozen=True)
class Reserve:
    """All have finished: have room for the summary, or set the machine's `has_room` to False."""


@dataclass(frozen=True)
class Reject:
    """A worker claims what cannot be: count it."""

    identity: bytes
    what: str


class What(StrEnum):
    """What has happened, for programs that read logs."""

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
    """Tell whoever looks: `text` for people, the rest for programs."""

    text: str
    what: What
    member: MemberId | None = None


@dataclass(frozen=True)
class End:
    """The run is over. Exit code 0: all finished, write the summary."""

    reason: str
    code: int


Command = Send | Record | Measured | Keep | Rewind | Started | Reserve | Reject | Event | End
