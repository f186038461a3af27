"""What a worker says to the coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from washp2p.protocol.layout import LayoutWire  # noqa: TC001 - a schema is read at run time
from washp2p.protocol.messages.fields import QUARTERS, Addresses, Key, Losses, Name, Text
from washp2p.protocol.messages.records import Json  # noqa: TC001 - as above


@dataclass(frozen=True)
class Hello:
    """Worker: I should like to join; this is what I am. Answered by Welcome or Refuse."""

    protocol: int
    derivation: int
    version: Name
    host: Name
    pid: int


@dataclass(frozen=True)
class Claim:
    """Worker: I hold these checkpoints, each [round, member], and can go on as one of them.

    Answered by Welcome or Refuse.
    """

    host: Name
    pid: int
    held: list[tuple[int, int]]


@dataclass(frozen=True)
class Attach:
    """Worker: my model has this layout, my data plane listens here and is known by this key.

    For peers at the same `place` it listens at `near`, too, the nearest first. `rounds` is how
    many rounds I shall take part in, 0 if not known; `versions` is what I run on.
    `no_snapshots` says why my optimizer's state cannot be given to others; empty if it can.
    """

    layout: LayoutWire
    endpoint: Name
    near: Addresses
    place: Name
    key: Key
    rounds: int
    versions: Annotated[dict[str, Json], 32]
    no_snapshots: Text


@dataclass(frozen=True)
class Synced:
    """Worker: I hold the initial state of the first member of this generation."""

    generation: int


@dataclass(frozen=True)
class Ready:
    """Worker: I hold a snapshot and can take part. Answered by a NewRoster that has me."""


@dataclass(frozen=True)
class Saved:
    """Worker: I hold a checkpoint of this round; or not, because of `error`."""

    round: int
    error: Text


@dataclass(frozen=True)
class Progress:
    """Worker: I have finished this many rounds."""

    rounds: int


@dataclass(frozen=True)
class Metrics:
    """Worker: one line for metrics.jsonl."""

    values: dict[str, Json]


@dataclass(frozen=True)
class Result:
    """Worker: what evaluation found after average `number`, in per cent.

    `members` are in the order of `over`.
    """

    number: int
    over: list[int]
    members: list[float]
    ensemble: float
    averaged: float
    greedy_soup: float


@dataclass(frozen=True)
class Averaging:
    """Worker: my average `number`, counted from 1, begins; `round` was my last round before it."""

    number: int
    round: int


@dataclass(frozen=True)
class Averaged:
    """Worker: I hold average `number` over the members of this generation."""

    generation: int
    number: int


@dataclass(frozen=True)
class Stalled:
    """Worker: I have waited too long for this member; or the link to it is `broken`."""

    member: int
    broken: bool


@dataclass(frozen=True)
class Unusable:
    """Worker, a newcomer: what this member gave me as its snapshot is none that I can use."""

    member: int
    what: Text


@dataclass(frozen=True)
class NoSnapshots:
    """Worker: my optimizer's state cannot be given to newcomers, nor kept, for this reason."""

    reason: Text


@dataclass(frozen=True)
class Busy:
    """Worker: my loop does something else for at most so many `seconds`; 0: it goes on again."""

    seconds: float


@dataclass(frozen=True)
class Notice:
    """Worker: people should know this of the run; `topic` is one of a few words."""

    topic: Name
    text: Text


@dataclass(frozen=True)
class Diverged:
    """Worker: this member sends values that are not finite."""

    member: int


@dataclass(frozen=True)
class CutOff:
    """Worker: I take nothing from this member any more, who keeps sending what cannot be."""

    member: int
    what: Text


@dataclass(frozen=True)
class Back:
    """Worker: the connection was lost and is here again.

    I hold rosters of generations below `generations`, and seeds up to round `seeds`. I say again
    what I have said since Welcome.
    """

    generations: int
    seeds: int


@dataclass(frozen=True)
class Finished:
    """Worker: I have all I need. I keep serving my peers until Finish.

    `seconds` from the first round's beginning to the last one's end, of which I `waited` so many
    for peers; `max_delay` is the S I ended with, or "none"; `lost` are values by reason. The last
    four are what the selection's theory, the paper, and PAPA, with and without all-reduce, say of
    the payload in bytes.
    """

    rounds: int
    steps: int
    seconds: float
    waited: float
    max_delay: Name
    applied_values: int
    lost: Losses
    refused_values: int
    refused_messages: Annotated[dict[str, int], 32]
    parameters: int
    theory: float
    paper: float
    papa: float
    papa_all_reduce: float


@dataclass(frozen=True)
class Accounts:
    """Worker: my ledger, now that no byte will be added to it. My last word."""

    counts: list[dict[str, Json]]


@dataclass(frozen=True)
class Leave:
    """Worker: I go before the end, for this reason."""

    reason: Text
    code: int


@dataclass(frozen=True)
class Vitals:
    """Worker, every second or so: how it goes. Totals since it joined.

    `seconds` since its first round began; of them it `waited` for peers, and a thread beside
    training spent so many on `planning`. `max_delay` and `lost` as in Finished; values have been
    `late` by so many rounds of late; so many were `applied` and, not being finite, `refused`.
    `distance` is its estimate of the population's mean squared distance from its mean, negative if
    there is none yet. `sent` are rows of peer, kind, wire and bytes.
    """

    steps: int
    seconds: float
    waited: float
    planning: float
    generation: int
    applied: int
    max_delay: Name
    late: float
    lost: Losses
    refused: int
    refused_messages: Annotated[dict[str, int], 32]
    distance: float
    sent: Annotated[list[tuple[int, Name, Name, int]], 1 << 18]


@dataclass(frozen=True)
class Look:
    """Anybody: how does the run go? Answered by a View."""


@dataclass(frozen=True)
class Rank:
    """Worker, just before its Hello: I should like this MemberId, if it is nobody's yet."""

    rank: int


@dataclass(frozen=True)
class Surveyed:
    """Worker: my part of the mean squared distance from the mean, by quarter of the parameters.

    After a round, of so many members; at all scalars if `exact`, else estimated.
    """

    round: int
    members: int
    exact: bool
    squares: Annotated[list[float], QUARTERS]
