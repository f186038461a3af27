"""The messages from the coordinator to a worker.

Each docstring puts a message into the coordinator's words. In them "you" is the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from washp2p.protocol.messages.fields import Name, PeerRow, Text  # noqa: TC001 - as above
from washp2p.protocol.messages.records import Json  # noqa: TC001 - as above


@dataclass(frozen=True)
class Refuse:
    """Coordinator: I refuse you, for this `reason`. The reason also says what to do about it."""

    reason: str


@dataclass(frozen=True)
class Resume:
    """Coordinator: the run `name` goes on from a checkpoint of one of these `rounds`.

    The worker answers with a Claim.
    """

    name: Name
    rounds: Annotated[list[int], 16]


@dataclass(frozen=True)
class Welcome:
    """Coordinator: you are `member` of the run `name`; `config` is its whole configuration.

    If `resumes` is true, you go on from this member's checkpoint, which you hold. `run` identifies
    this life of the run, `origin` its first life.
    """

    member: int
    run: bytes
    origin: bytes
    name: Name
    config: dict[str, Json]
    resumes: bool


@dataclass(frozen=True)
class NewRoster:
    """Coordinator: from round `first` on, `peers` are the members, in this order.

    A former member that is not among them is gone at once. Nobody waits for it, not even in rounds
    before `first`. `averages` is the number of averages taken so far.
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
    """Coordinator, to a newcomer: fetch a snapshot from this `peer`. Forget any earlier donor."""

    peer: PeerRow


@dataclass(frozen=True)
class Seeds:
    """Coordinator: these are the seeds of consecutive rounds from `first` on, 8 bytes each.

    `roster` is the digest of the roster of this `generation`.
    """

    generation: int
    roster: bytes
    first: int
    seeds: bytes


@dataclass(frozen=True)
class Checkpoint:
    """Coordinator: keep a checkpoint after this `round`.

    I say it before I send the round's seed.
    """

    round: int


@dataclass(frozen=True)
class Kept:
    """Coordinator: all members hold a checkpoint of this `round`. You may delete older ones."""

    round: int


@dataclass(frozen=True)
class Discard:
    """Coordinator: not all members could keep a checkpoint of this `round`. Delete yours."""

    round: int


@dataclass(frozen=True)
class Settled:
    """Coordinator: all members of this `generation` hold average `number`. It is now final.

    `rounds` has the round after which each member took it, in the roster's order.
    """

    generation: int
    number: int
    rounds: list[int]


@dataclass(frozen=True)
class Evaluated:
    """Coordinator: a member has sent a Result for average `number`. You need not evaluate it."""

    number: int


@dataclass(frozen=True)
class Dropped:
    """Coordinator: you are no member any more, for this reason; you may join again."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """Coordinator: all members are finished, and nobody needs you any longer.

    The worker answers with Accounts.
    """


@dataclass(frozen=True)
class Stop:
    """Coordinator: the run ends here, for this reason; exit with `code`."""

    reason: Text
    code: int


@dataclass(frozen=True)
class Ping:
    """Coordinator: I have nothing to say. I send a Ping to notice a connection that is closed."""


@dataclass(frozen=True)
class View:
    """Coordinator: this is the state of the run. docs/protocol.md lists the `values`."""

    values: dict[str, Json]
