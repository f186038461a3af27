"""What the coordinator says to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from washp2p.protocol.messages.fields import Name, PeerRow, Text  # noqa: TC001 - as above
from washp2p.protocol.messages.records import Json  # noqa: TC001 - as above


@dataclass(frozen=True)
class Refuse:
    """Coordinator: no, for this reason, which says what to do about it."""

    reason: str


@dataclass(frozen=True)
class Resume:
    """Coordinator: the run `name` goes on from a checkpoint of one of these rounds.

    Answered by a Claim.
    """

    name: Name
    rounds: Annotated[list[int], 16]


@dataclass(frozen=True)
class Welcome:
    """Coordinator: you are `member` of the run `name`; this is its whole configuration.

    `resumes`: you go on from that member's checkpoint, which you hold. `run` names this life of the
    run, `origin` its first one.
    """

    member: int
    run: bytes
    origin: bytes
    name: Name
    config: dict[str, Json]
    resumes: bool


@dataclass(frozen=True)
class NewRoster:
    """Coordinator: from round `first` on these are the members.

    Who is missing is gone already: nobody waits for it in rounds before `first`, either. So many
    `averages` have been taken.
    """

    generation: int
    first: int
    averages: int
    peers: list[PeerRow]


@dataclass(frozen=True)
class Guest:
    """Coordinator, to a member: this newcomer will ask you for a snapshot."""

    peer: PeerRow


@dataclass(frozen=True)
class Donor:
    """Coordinator, to a newcomer: get a snapshot from this member; forget any other you asked."""

    peer: PeerRow


@dataclass(frozen=True)
class Seeds:
    """Coordinator: the seeds of consecutive rounds from `first` on, 8 bytes each."""

    generation: int
    roster: bytes
    first: int
    seeds: bytes


@dataclass(frozen=True)
class Checkpoint:
    """Coordinator: keep a checkpoint after this round. Comes before the round's seed."""

    round: int


@dataclass(frozen=True)
class Kept:
    """Coordinator: all members hold a checkpoint of this round; older ones may go."""

    round: int


@dataclass(frozen=True)
class Discard:
    """Coordinator: not all members could keep a checkpoint of this round; nobody need keep one."""

    round: int


@dataclass(frozen=True)
class Settled:
    """Coordinator: all members of this generation hold average `number`. It stands from now on.

    They took it after these `rounds`, in the roster's order.
    """

    generation: int
    number: int
    rounds: list[int]


@dataclass(frozen=True)
class Evaluated:
    """Coordinator: somebody has sent a Result for average `number`; nobody need evaluate it."""

    number: int


@dataclass(frozen=True)
class Dropped:
    """Coordinator: you are no member any more, for this reason; you may join again."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """Coordinator: all are finished, nobody needs you any longer. Answered by Accounts."""


@dataclass(frozen=True)
class Stop:
    """Coordinator: the run ends here, for this reason; exit with `code`."""

    reason: Text
    code: int


@dataclass(frozen=True)
class Ping:
    """Coordinator: nothing; sent so that a closed connection shows."""


@dataclass(frozen=True)
class View:
    """Coordinator: how the run goes, as docs/protocol.md says."""

    values: dict[str, Json]
