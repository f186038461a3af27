"""What the membership state machine may order; `server.py` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.membership import Member
    from washp2p.control import Message


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
class Started:
    """The population is complete: keep in config.json who it is."""

    members: tuple[Member, ...]


@dataclass(frozen=True)
class Event:
    """Tell the user."""

    text: str


@dataclass(frozen=True)
class End:
    """The run is over. Exit code 0: all finished, write the summary."""

    reason: str
    code: int


Command = Send | Record | Started | Event | End
