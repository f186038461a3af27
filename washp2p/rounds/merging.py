"""Merging: writes the values that have arrived of a round into the store.

Received values replace a member's own, or are added as differences, or make a mean towards which
the member's own values are pulled. Applied and refused values are counted here. Nothing waits, and
nothing is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from washp2p.model.device_copies import as_bytes
from washp2p.model.means import as_array, mean_of_finite
from washp2p.model.write_order import WriteOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from washp2p.model.device_copies import Places, Vectors
    from washp2p.model.store import Store
    from washp2p.plan.consensus import Consensus
    from washp2p.plan.plan import Plan
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.identical_members import Likeness
    from washp2p.rounds.round_state import Leg, Span, Staged
    from washp2p.transports.base import Payload


class Merger:
    """Merges the rounds of one member.

    With `add`, a received value minus this member's own value, as gathered for that round, is added
    to the present value. Without `add`, it overwrites the present value, unless a newer round has
    written it. A mean pulls values by the weight that `weight()` returns, as in `Strategy.weight`.
    `consensus` observes the values of measured legs.
    """

    def __init__(
        self,
        store: Store,
        me: MemberId,
        *,
        add: bool,
        weight: Callable[[], float],
        consensus: Consensus | None,
    ) -> None:
        self._store = store
        self._me = me
        self._add = add
        self._weight = weight
        self._consensus = consensus
        self._dtypes = store.dtypes
        self._item_bytes = [slot.item_bytes for slot in store.layout.slots]
        self._incoming = store.staging()
        self._newest_writes = WriteOrder()
        self.measuring = False
        """Whether an estimate of how far the members are apart is under way."""
        self.applied_values = 0
        """Scalars received and applied."""
        self.refused_values = 0
        """Scalars received and not applied because their value in some slot was not finite."""
        self.diverged: set[MemberId] = set()
        """Members that have sent values that are not finite."""
        self.likeness: Likeness | None = None
        """Compares received values with this member's own, to find identical members; or None."""

    def keeps(self, plan: Plan) -> bool:
        """Whether the member's own values at the received indices must be kept for later."""
        if self._add or (plan.mean is not None and plan.mean.own):
            return True
        return self.likeness is not None and self.likeness.watches

    @property
    def _watches(self) -> bool:
        return self.likeness is not None and self.likeness.watches

    @property
    def remembers(self) -> bool:
        """Whether writes are remembered of rounds that were applied before an older round."""
        return len(self._newest_writes) > 0

    def forget(self, oldest: int) -> None:
        """Forget what rounds up to `oldest`, the oldest outstanding one, have written."""
        self._newest_writes.forget(oldest)

    def merge(self, leg: Leg, staged: Staged, *, older_waits: bool) -> None:
        """Write the values that have arrived of a leg. If all are here, in host memory, one write
        does it, else one write for each sender.

        `older_waits` is True if values of an older round are missing. They must not overwrite these
        values when they arrive.
        """
        arrived = list(leg.arrived.items())
        count, on_device = 0, False
        for (begin, end), payload in leg.arrived.values():
            count += end - begin
            on_device = on_device or isinstance(payload, torch.Tensor)
        self.applied_values += count
        if count == len(staged.receive) and not on_device:
            self._write(leg, staged.receive, arrived, 0, leg.own, older_waits=older_waits)
            return
        for piece in arrived:
            begin, end = piece[1][0]
            places, own = staged.receive.part(begin, end), [v[begin:end] for v in leg.own]
            self._write(leg, places, [piece], begin, own, older_waits=older_waits)

    def reduce(
        self, staged: Staged, own: Vectors, arrived: dict[MemberId, tuple[Span, Payload]]
    ) -> Vectors:
        """The mean of members' finite values at `staged.receive`, added in the roster's order."""
        count, mean = len(staged.receive), staged.plan.mean
        assert mean is not None
        self.applied_values += count * len(arrived)

        def contributions() -> Iterator[tuple[MemberId, Vectors]]:
            for member in staged.roster.members:
                if member == self._me and mean.own:
                    yield member, own
                elif member in arrived:
                    values = self._values(count, [arrived[member]], 0)
                    if mean.own and self._watches:
                        self._compare(staged.receive, own, values, [(member, arrived[member])], 0)
                    for vector in values:
                        if vector.is_cuda:  # it was made in a stream of the transport's
                            vector.record_stream(torch.cuda.current_stream(vector.device))
                    yield member, values

        device = self._store.device
        reduced, unusable = mean_of_finite(contributions(), count, self._dtypes, device)
        for sender, values in unusable.items():
            if sender != self._me:
                self.diverged.add(sender)
                self.refused_values += values
                self.applied_values -= values
        return reduced

    def pull(self, places: Places, means: Vectors) -> int:
        """Pull the values at `places` towards `means`. Returns how many scalars have no mean,
        because no member's value is finite.
        """
        finite = _finite(means)
        refused = len(places) - int(finite.sum())
        if refused:
            places, means = self._only(np.flatnonzero(finite), places, means)
        self._store.pull(places, means, self._weight())
        return refused

    def take_means(self, staged: Staged, arrived: dict[MemberId, tuple[Span, Payload]]) -> None:
        """Pull towards the means that others have made of their shards."""
        for span, payload in arrived.values():
            values = self._values(span[1] - span[0], [(span, payload)], span[0])
            refused = self.pull(staged.send.part(*span), values)
            self.refused_values += refused
            self.applied_values += span[1] - span[0] - refused

    def vector(self, payload: Payload) -> torch.Tensor:
        """The values of a payload that has one slot."""
        if isinstance(payload, torch.Tensor):
            return payload.view(self._dtypes[0])
        values = torch.empty(payload.nbytes // self._item_bytes[0], dtype=self._dtypes[0])
        as_bytes(values)[:] = payload
        return values

    def conclude(self, leg: Leg, staged: Staged) -> None:
        """Conclude the estimate of distance if no values of a measured leg are missing. Discard
        it if some are lost.
        """
        assert self._consensus is not None
        if leg.missing and not leg.lost:
            return
        if leg.lost:
            self._consensus.discard()
        else:
            self._consensus.finish(len(staged.roster.members))
        leg.measured = self.measuring = False

    def _write(
        self,
        leg: Leg,
        places: Places,
        pieces: list[tuple[MemberId, tuple[Span, Payload]]],
        offset: int,
        own: Vectors,
        *,
        older_waits: bool,
    ) -> None:
        """Apply `pieces`: for each sender, a span and a payload. The spans, minus `offset`, fill
        `places`. `own` has this member's values at `places`, if they were kept.
        """
        values = self._values(len(places), [piece for _, piece in pieces], offset)
        if own and self._watches:
            self._compare(places, own, values, pieces, offset)
        if not self._store.copies.finite(values):
            places, values, own = self._refuse(places, values, own, pieces, offset)
        if leg.measured:
            assert self._consensus is not None
            self._consensus.observe(places.host, as_array(own[0]), as_array(values[0]))
        if self._add:
            self._store.add(places, values, own)
            return
        if len(self._newest_writes):
            free = np.flatnonzero(self._newest_writes.free(places.host, leg.number))
            if len(free) < len(places):
                places, values = self._only(free, places, values)
        if older_waits:
            self._newest_writes.note(places.host, leg.number)
        self._store.scatter(places, values)

    def _compare(
        self,
        places: Places,
        own: Vectors,
        values: Vectors,
        pieces: list[tuple[MemberId, tuple[Span, Payload]]],
        offset: int,
    ) -> None:
        """Compare received parameters with this member's own, to find identical members."""
        assert self.likeness is not None
        mine, theirs = as_array(own[0]), as_array(values[0])
        for sender, ((begin, end), _) in pieces:
            part = slice(begin - offset, end - offset)
            self.likeness.observe(sender, places.host[part], mine[part], theirs[part])

    def _values(self, count: int, pieces: list[tuple[Span, Payload]], offset: int) -> Vectors:
        """One vector for each slot: of several payloads on the host, or of one on the device."""
        payload = pieces[0][1] if pieces else None
        if isinstance(payload, torch.Tensor):
            parts = payload.split([count * size for size in self._item_bytes])
            return [part.view(kind) for part, kind in zip(parts, self._dtypes, strict=True)]
        values = self._incoming.take(count)
        for (begin, end), data in pieces:
            assert isinstance(data, memoryview)
            first = 0
            for view, size in zip(self._incoming.memory, self._item_bytes, strict=True):
                last = first + (end - begin) * size
                view[(begin - offset) * size : (end - offset) * size] = data[first:last]
                first = last
        return values

    def _refuse(
        self,
        places: Places,
        values: Vectors,
        own: Vectors,
        pieces: list[tuple[MemberId, tuple[Span, Payload]]],
        offset: int,
    ) -> tuple[Places, Vectors, Vectors]:
        """Leave out scalars that are not finite in some slot, and note their senders. Returns
        the rest.
        """
        finite = _finite(values)
        for sender, ((begin, end), _) in pieces:
            if not finite[begin - offset : end - offset].all():
                self.diverged.add(sender)
        kept = np.flatnonzero(finite)
        if len(kept) < len(places):
            self.refused_values += len(places) - len(kept)
            self.applied_values -= len(places) - len(kept)
            own = [vector[torch.from_numpy(kept).to(vector.device)] for vector in own]
            places, values = self._only(kept, places, values)
        return places, values, own

    def _only(
        self, kept: npt.NDArray[np.intp], places: Places, values: Vectors
    ) -> tuple[Places, Vectors]:
        """The given places and values, restricted to a selection."""
        copies = self._store.copies
        return copies.upload(places.host[kept]), copies.select(values, kept)


def _finite(values: Vectors) -> npt.NDArray[np.bool_]:
    """Which scalars are finite in all slots."""
    usable: npt.NDArray[np.bool_] = torch.stack([v.isfinite() for v in values]).all(0).cpu().numpy()
    return usable
