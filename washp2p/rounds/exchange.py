"""The exchange: from gather to scatter. Here a strategy's plan meets a transport.

    plan -> gather -> post -> (frames arrive) -> merge -> scatter

Several rounds may be outstanding; what has arrived of them is applied in ascending order. A mean
has two legs: each member reduces its shard, then sends the result on. The caller passes arriving
frames in and does the waiting. Nothing here reads a socket or a clock.
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from washp2p.model.device_copies import as_bytes
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import (
    BESIDE,
    FIRST,
    MOMENTS,
    SECOND,
    End,
    Frame,
    Posted,
    headers,
)
from washp2p.rounds import hold_points
from washp2p.rounds.inbound import Arrivals
from washp2p.rounds.merging import Merger
from washp2p.rounds.round_state import Applied, Beside, Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from washp2p.model.device_copies import Mark, Vectors
    from washp2p.model.store import Store
    from washp2p.plan.consensus import Consensus
    from washp2p.plan.plan import Route
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.rounds.merging import Staged
    from washp2p.rounds.ports import Outbox
    from washp2p.rounds.round_state import Round
    from washp2p.transports.base import Buffers, Transport


class Exchange:
    """One member's rounds. `add`, `consensus` and `weight` go to Merger, `room` to Arrivals. A
    mean is taken once no more values for it will arrive.
    """

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        outbox: Outbox,
        me: MemberId,
        run: bytes,
        add: bool,
        refusals: Refusals[MemberId],
        consensus: Consensus | None = None,
        weight: Callable[[], float] = lambda: 1.0,
        room: int = 0,
    ) -> None:
        self._store = store
        self._consensus = consensus
        self._measure = False
        self._transport = transport
        self._me = me
        self._run = run
        self.merger = Merger(store, me, add=add, weight=weight, consensus=consensus)
        """What becomes of received values."""
        self._item_bytes = [slot.item_bytes for slot in store.layout.slots]
        self._scalar_bytes = sum(self._item_bytes)
        self._outgoing = store.staging()
        self._outbox = outbox
        self._gathered: dict[tuple[int, int], tuple[Staged, Vectors]] = {}
        self.posted = 0
        """The last round posted."""
        self._leg = FIRST
        self._last: int | None = None
        self._number = 0
        self._unshared: list[Callable[[], None]] = []
        self.generation = 0
        """The generation of the last round posted."""
        self.arrivals = Arrivals(self._item_bytes, refusals, room)
        """What has come, and what is to come."""
        self.came_beside: list[tuple[int, int, dict[MemberId, torch.Tensor]]] = []
        """Round, leg, and by sender what came beside the values, until it is taken."""

    def post(self, number: int, staged: Staged, share: int) -> None:
        """Gather the values of round `number`, and send them as soon as they have left the device.

        Rounds between the last one and this are skipped. `share` is the share of its time, per
        mille, that this member waits.
        """
        plan, roster = staged.plan, staged.roster
        self._store.look()
        header = self._header(number, roster, plan.fingerprint, FIRST, share)
        messages = self._gather(staged, header, number)
        if self._measure:
            self._measure, self.merger.measured = False, number
        kept = self.merger.keeps(plan, number)
        self._gathered[number, FIRST] = staged, self._store.keep(staged.receive) if kept else []
        hold_points.reach(hold_points.BEFORE_SEND, number)
        self._outbox.post(messages)
        parts = self._parts(staged, plan.receive, number)
        self._expect(number, roster, plan.fingerprint, FIRST, parts)

    def pass_on(self, number: int, roster: Roster, beside: Beside) -> None:
        """Send extra vectors after a round's values; `came_beside` gets others' vectors later."""
        fingerprint, leg, absent = beside.fingerprint, beside.leg, self.arrivals.absent
        header = self._header(number, roster, fingerprint, leg)
        to = {p: [vector] for p, vector in beside.outgoing.items() if not absent(p, number)}
        self._send_vectors(header, to, beside.kind)
        parts = [(p, 0, count) for p, count in beside.incoming.items() if not absent(p, number)]
        self._expect(number, roster, fingerprint, leg, parts)

    def look(self) -> None:
        """Notice what training has done since the last round. `post` does this, too.

        Raises UsageError as `Store.look`.
        """
        self._store.look()

    def measure(self) -> None:
        """Estimate members' distance in the next round, unless an estimate is under way."""
        self._measure = self._consensus is not None and not self.merger.measured

    @property
    def distance(self) -> float:
        """The last estimate of `Consensus.distance`, or a negative number if there is none.

        There is none either if this member has diverged.
        """
        distance = -1.0 if self._consensus is None else self._consensus.distance
        return distance if isfinite(distance) else -1.0

    def flush(self) -> None:
        """Return once everything posted has left the device and is sent."""
        self._outbox.flush()

    def end(self, last: int, number: int, peers: Iterable[MemberId]) -> None:
        """Tell `peers` that no round follows after round `last`, until average `number` is
        taken.
        """
        self.flush()
        self._last, self._number = last, number
        for peer in peers:
            self.greet(peer)

    def go_on(self) -> None:
        """Continue with rounds: all members have taken the average."""
        self._last = None
        self.arrivals.go_on(self._number)

    def greet(self, peer: MemberId) -> None:
        """Tell a new `peer` the last round that this member takes part in, if it is known."""
        if self._last is not None:
            end = End(self._run, self._me, peer, self.generation, self._last, self._number)
            self._transport.send(peer, Kind.AVERAGE, headers.encode(end))

    def resume(self, peer: MemberId) -> None:
        """Tell `peer` up to which turn frames may be lost: its connection works again."""
        self.flush()
        header = headers.encode(Posted(self._run, self._me, peer, self.posted, self._leg))
        self._transport.send(peer, Kind.EXCHANGE, header)
        self.greet(peer)

    def apply(self) -> list[Applied]:
        """Apply the values that have arrived, in ascending order of rounds. Returns what was
        applied. Call `share` once the log has it.
        """
        done = []
        waiting = False
        for round_ in self.arrivals:
            if round_.leg >= BESIDE:
                done += self._take_beside(round_)
                continue
            staged, own = self._gathered[round_.turn]
            if staged.plan.mean is not None:
                done += self._take_mean(round_)
                continue
            if round_.arrived or round_.lost:
                self.merger.scatter(round_, staged, own, newer_matter=waiting)
                done.append(Applied(round_.number, tuple(round_.arrived), tuple(round_.lost)))
            if round_.number == self.merger.measured:
                self.merger.follow_measurement(round_, len(staged.roster.members))
            if round_.missing:
                waiting = True
            else:
                del self._gathered[round_.turn]
            self.arrivals.settle(round_)
        self.merger.forget(self.arrivals.oldest)
        return done

    def _gather(self, staged: Staged, header: Frame, number: int) -> Messages:
        """Gather a round's values for each peer: on the device if the transport takes them from
        there, else on the host. Returns the messages.
        """
        parts = self._parts(staged, staged.plan.send, number)
        direct = {peer for peer, _, _ in parts if self._transport.direct(peer)}
        marks: list[Mark] = []
        picked: Vectors = []
        memory: list[memoryview] = []
        if direct:
            picked, mark = self._store.pick(staged.send)
            marks.append(mark)
        if len(direct) < len(parts) or not parts:
            values = self._outgoing.take(len(staged.send))
            marks.append(self._store.gather(staged.send, values))
            memory = self._outgoing.memory
        messages: list[tuple[MemberId, int, Buffers]] = []
        for peer, begin, end in parts:
            buffers: Buffers
            if peer in direct:
                buffers = [vector[begin:end] for vector in picked]
            else:
                sized = zip(memory, self._item_bytes, strict=True)
                buffers = [view[begin * size : end * size] for view, size in sized]
            messages.append((peer, (end - begin) * self._scalar_bytes, buffers))
        return Messages(marks, header, messages)

    def _take_beside(self, round_: Round) -> list[Applied]:
        """Put a round's extra vectors in `came_beside` once no more come. Returns what to log."""
        if round_.missing:
            return []
        came = {sender: self.merger.vector(data) for sender, (_, data) in round_.arrived.items()}
        self.came_beside.append((round_.number, round_.leg, came))
        applied = Applied(round_.number, tuple(came), tuple(round_.lost), round_.leg)
        self.arrivals.settle(round_)
        return [applied] if round_.leg == MOMENTS else []

    def _take_mean(self, round_: Round) -> list[Applied]:
        """Once no more of a leg will arrive, pull towards the mean that this member makes (leg
        0) or the means that others have sent (leg 1). Returns what was applied.
        """
        if round_.missing:
            return []
        staged, own = self._gathered.pop(round_.turn)
        arrived = dict(round_.arrived)
        applied = Applied(round_.number, tuple(arrived), tuple(round_.lost), round_.leg)
        self.arrivals.settle(round_)
        if round_.leg == SECOND:
            self.merger.take_means(staged, arrived)
            return [applied]
        reduced = self.merger.reduce(staged, own, arrived)
        if arrived:
            self.merger.pull(staged.receive, reduced)
        if staged.legs > 1:
            self._unshared.append(partial(self._share, round_, staged, reduced))
        return [applied]

    def share(self) -> None:
        """Send the means that `apply` made to their contributors, once the log names these."""
        unshared, self._unshared = self._unshared, []
        for pass_on in unshared:
            pass_on()

    def _share(self, round_: Round, staged: Staged, reduced: Vectors) -> None:
        """Send this member's shard of the mean to its contributors, and expect theirs."""
        number, roster, fingerprint = round_.number, staged.roster, round_.fingerprint
        header = self._header(number, roster, fingerprint, SECOND)
        to = [peer for peer, _, _ in self._parts(staged, staged.plan.receive, number)]
        self._send_vectors(header, dict.fromkeys(to, reduced), Kind.EXCHANGE)
        self._gathered[number, SECOND] = staged, []
        parts = self._parts(staged, staged.plan.send, number)
        self._expect(number, roster, fingerprint, SECOND, parts)

    def _header(
        self, number: int, roster: Roster, fingerprint: int, leg: int, share: int = 0
    ) -> Frame:
        slots = 1 if leg >= BESIDE else len(self._item_bytes)
        run, me, generation = self._run, self._me, roster.generation
        return Frame(run, me, me, generation, number, slots, share, fingerprint, leg)

    def _parts(self, staged: Staged, route: Route, number: int) -> list[tuple[MemberId, int, int]]:
        """The parts of a route, (member, begin, end), without members not in the round."""
        members, absent = staged.roster.members, self.arrivals.absent
        parts = ((members[position], begin, end) for position, begin, end in route.parts)
        return [part for part in parts if not absent(part[0], number)]

    def _send_vectors(self, header: Frame, outgoing: dict[MemberId, Vectors], kind: Kind) -> None:
        """Send each peer its vectors, made on the device, after all messages posted before."""
        self._store.copies.settle()
        hosted: dict[int, memoryview] = {}
        parts: list[tuple[MemberId, int, Buffers]] = []
        for peer, vectors in outgoing.items():
            buffers: Buffers = vectors
            if not self._transport.direct(peer):
                for vector in vectors:  # which may go to several peers
                    if id(vector) not in hosted:
                        hosted[id(vector)] = as_bytes(vector.cpu())
                buffers = [hosted[id(vector)] for vector in vectors]
            parts.append((peer, sum(vector.nbytes for vector in vectors), buffers))
        self._outbox.post(Messages([], header, parts, kind))

    def _expect(
        self,
        number: int,
        roster: Roster,
        fingerprint: int,
        leg: int,
        parts: Iterable[tuple[MemberId, int, int]],
    ) -> None:
        """Expect `parts` of a leg that this member has sent. A part is (member, begin, end)."""
        spans = {peer: (begin, end) for peer, begin, end in parts}
        self.generation, self.posted, self._leg = roster.generation, number, leg
        self.arrivals.expect(number, roster.generation, fingerprint, spans, leg)
