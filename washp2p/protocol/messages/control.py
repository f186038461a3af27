"""The control plane's messages and their encoding. Imports no sockets and no torch.

The messages travel over one ordered channel between each worker and the coordinator. A field's type
is its schema: every decoded message fits it, whoever sent it. The kind numbers and the fields of
`Hello` and `Refuse` never change. So two versions can always tell each other why they do not fit.
"""

from __future__ import annotations

from typing import get_args

from washp2p.protocol.messages.from_coordinator import (
    Checkpoint,
    Discard,
    Donor,
    Dropped,
    Evaluated,
    Finish,
    Guest,
    Kept,
    NewRoster,
    Ping,
    Refuse,
    Resume,
    Seeds,
    Settled,
    Stop,
    View,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Back,
    Busy,
    Claim,
    CutOff,
    Diverged,
    Finished,
    Hello,
    Leave,
    Look,
    Metrics,
    NoSnapshots,
    Notice,
    Progress,
    Rank,
    Ready,
    Result,
    Saved,
    Stalled,
    Surveyed,
    Synced,
    Unusable,
    Vitals,
)
from washp2p.protocol.messages.records import Codec

PROTOCOL = 11
MESSAGE_LIMIT = 16 << 20
WORKER_LIMIT = 4 << 20
"""The largest size of a worker's message in bytes: about that of the largest layouts."""

Message = (
    Hello
    | Refuse
    | Resume
    | Claim
    | Welcome
    | Attach
    | NewRoster
    | Synced
    | Guest
    | Donor
    | Ready
    | Seeds
    | Checkpoint
    | Saved
    | Kept
    | Discard
    | Progress
    | Metrics
    | Result
    | Averaged
    | Settled
    | Evaluated
    | Stalled
    | Diverged
    | CutOff
    | Dropped
    | Back
    | Finished
    | Finish
    | Accounts
    | Leave
    | Stop
    | Ping
    | Rank
    | Vitals
    | Look
    | View
    | Surveyed
    | Unusable
    | NoSnapshots
    | Busy
    | Notice
    | Averaging
)

messages: Codec[Message] = Codec(get_args(Message), limit=MESSAGE_LIMIT)
