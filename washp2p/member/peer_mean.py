"""The mean of all members' vectors, computed peer to peer.

Each member reduces its own shard of everyone's state, then shares it, so that a member sends what
a ring all-reduce would: 2 (N-1)/N of its state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from washp2p.model.device_copies import as_bytes
from washp2p.model.means import mean
from washp2p.plan.plan import shard_bounds
from washp2p.protocol.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.transports.transfer import Download, Transfer


def average_peer_to_peer(
    vectors: Sequence[torch.Tensor],
    *,
    transfer: Transfer,
    members: Sequence[MemberId],
    me: MemberId,
    attempt: str,
    wait_until: Callable[[Callable[[], bool]], None],
) -> list[torch.Tensor]:
    """The mean over `members` (in their order) of everyone's `vectors`; collective.

    They are one-dimensional contiguous CPU tensors, as many and as long on all members, offered by
    each as the blobs `final<attempt>:<number>`. `attempt` differs whenever `members` do, so that
    nothing late of one is taken for another's. Blocks through `wait_until`; an exception from it
    leaves. The result is the caller's.
    """
    results = []
    for number, vector in enumerate(vectors):
        result = torch.empty_like(vector)
        bounds = shard_bounds(len(vector), len(members))
        own = members.index(me)
        begin, end = bounds[own], bounds[own + 1]
        item = vector.element_size()
        parts = [
            vector[begin:end] if m == me else torch.empty_like(vector[begin:end]) for m in members
        ]
        downloads = [
            transfer.fetch(
                m,
                f"final{attempt}:{number}",
                as_bytes(part),
                kind=Kind.AVERAGE,
                offset=begin * item,
            )
            for m, part in zip(members, parts, strict=True)
            if m != me and end > begin
        ]
        wait_until(all_done(downloads))
        result[begin:end] = mean(parts)
        blob = f"mean{attempt}:{number}"
        transfer.offer(blob, as_bytes(result[begin:end]), Kind.AVERAGE)
        downloads = [
            transfer.fetch(m, blob, as_bytes(result[a:b]), kind=Kind.AVERAGE)
            for m, a, b in zip(members, bounds, bounds[1:], strict=False)
            if m != me and b > a
        ]
        wait_until(all_done(downloads))
        results.append(result)
    return results


def all_done(downloads: Sequence[Download]) -> Callable[[], bool]:
    """Whether all of them have come: a condition to wait for."""
    return lambda: all(download.done for download in downloads)
