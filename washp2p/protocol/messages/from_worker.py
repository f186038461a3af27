"""The messages from a worker to the coordinator.

Each docstring puts a message into the worker's words. In them "I" is the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from washp2p.protocol.layout import LayoutWire  # noqa: TC001 - a schema is read at run time
from washp2p.protocol.messages.fields import QUARTERS, Addresses, Key, Losses, Name, Text
from washp2p.protocol.messages.records import Json  # noqa: TC001 - as above


@dataclass(frozen=True)
class Hello:
    """Worker: I want to join. These are my versions, my host and my process.

    The coordinator answers with Welcome or Refuse, or with Resume if it resumes a run.
    """

    protocol: int
    derivation: int
    version: Name
    host: Name
    pid: int


@dataclass(frozen=True)
class Claim:
    """Worker: I hold the checkpoints `held`, each as (round, member).

    I can go on as any one of these members. The coordinator answers with Welcome or Refuse.
    """

    host: Name
    pid: int
    held: list[tuple[int, int]]


@dataclass(frozen=True)
class Attach:
    """Worker: my model has this `layout`. My data plane listens at `endpoint` and has this
    `key`.

    For peers at the same `place` it listens at the addresses `near`, too, the nearest first.
    `rounds` is the number of rounds I shall take part in, 0 if not known. `versions` names the
    software that I run on. `no_snapshots` says why my optimizer's state cannot be given to others;
    it is empty if it can.
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
    """Worker: I hold a snapshot and can take part.

    The coordinator answers with a NewRoster that includes me.
    """


@dataclass(frozen=True)
class Saved:
    """Worker: I hold a checkpoint of this `round`.

    If `error` is not empty, I hold none, and it says why.
    """

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
    """Worker: these are the accuracies found by evaluating average `number`, in per cent.

    `members` has the accuracy of each member in `over`, in the same order.
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
    """Worker: I have waited too long for this `member`.

    `broken` says whether my link to it is broken.
    """

    member: int
    broken: bool


@dataclass(frozen=True)
class Unusable:
    """Worker, a newcomer: I cannot use the snapshot that `member` gave me. `what` says why."""

    member: int
    what: Text


@dataclass(frozen=True)
class NoSnapshots:
    """Worker: for this `reason`, newcomers cannot get my optimizer's state, nor can I save it."""

    reason: Text


@dataclass(frozen=True)
class Busy:
    """Worker: my training loop pauses for at most `seconds`. If 0, it goes on again."""

    seconds: float


@dataclass(frozen=True)
class Notice:
    """Worker: people should know this `text` about the run.

    `topic` is its category, one of a few words.
    """

    topic: Name
    text: Text


@dataclass(frozen=True)
class Diverged:
    """Worker: this member sends values that are not finite."""

    member: int


@dataclass(frozen=True)
class CutOff:
    """Worker: I refuse everything from this `member` from now on.

    It keeps sending invalid messages; `what` describes them.
    """

    member: int
    what: Text


@dataclass(frozen=True)
class Back:
    """Worker: the connection was lost and works again.

    I hold the rosters of all generations below `generations`, and the seeds up to round `seeds`.
    After this message I repeat the important ones that I have sent since Welcome.
    """

    generations: int
    seeds: int


@dataclass(frozen=True)
class Finished:
    """Worker: I have all I need. I keep serving my peers until Finish.

    `seconds` is the time from the beginning of my first round to the end of my last one. For
    `waited` of these seconds I waited for peers. `max_delay` is the bound S that I ended with, or
    "none". `lost` has the lost values by reason. The last four fields are expected payloads in
    bytes: by the selection's theory, by the paper, with PAPA, and with PAPA by all-reduce.
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
    """Worker: this is my ledger. No byte will be added to it. It is my last message."""

    counts: list[dict[str, Json]]


@dataclass(frozen=True)
class Leave:
    """Worker: I leave before the end, for this `reason`. My exit code is `code`."""

    reason: Text
    code: int


@dataclass(frozen=True)
class Vitals:
    """Worker, every second or so: this is my progress. Totals count from when I joined.

    `seconds` is the time since my first round began. For `waited` of these seconds I waited for
    peers. `planning` is the CPU time, in seconds, that a thread beside training spent on plans.
    `max_delay` and `lost` are as in Finished. `late` is the number of rounds by which recent values
    were late, on average. `applied` values were applied; `refused` values were not finite and so
    refused. `distance` is my estimate of the members' mean squared distance from their mean,
    negative if there is none yet. `sent` has rows of peer, kind, wire and bytes.
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
    """Anybody: what is the state of the run? The coordinator answers with a View."""


@dataclass(frozen=True)
class Rank:
    """Worker, just before its Hello: I want the MemberId `rank`, if no member has it yet."""

    rank: int


@dataclass(frozen=True)
class Surveyed:
    """Worker: this is my part of a survey's result, for each quarter of the parameters.

    `squares` has my part of the members' mean squared distance from their mean, after `round`.
    `members` is the number of members. If `exact`, all scalars were compared. If not, the distance
    is estimated from a sample.
    """

    round: int
    members: int
    exact: bool
    squares: Annotated[list[float], QUARTERS]


MILESTONES = (
    Accounts, Attach, Averaged, Averaging, Finished, NoSnapshots, Notice, Ready, Result, Synced
)  # fmt: skip
"""Messages that a worker repeats after `Back`, to a coordinator that is back."""
