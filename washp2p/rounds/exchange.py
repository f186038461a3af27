"""The exchange: carries out a strategy's plan over a transport, from gather to scatter.

    plan -> gather -> send -> (frames arrive) -> merge -> scatter

Several rounds may be outstanding. Their values are applied as they arrive, in ascending order of
rounds. A mean has two legs: in the first each member reduces its shard, in the second it sends the
result on. The caller passes arriving frames to `arrivals` and does the waiting. Nothing here reads
a socket or a clock.
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from washp2p.model.device_copies import as_bytes
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.frames import FIRST, SECOND, SURVEY, End, Frame, Posted, headers
from washp2p.rounds import hold_points
from washp2p.rounds.arrivals import Arrivals
from washp2p.rounds.merging import Merger
from washp2p.rounds.round_state import Leg, Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from washp2p.model.device_copies import Mark, Vectors
    from washp2p.model.store import Store
    from washp2p.plan.consensus import Consensus
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.rounds.ports import Outbox
    from washp2p.rounds.round_state import Applied, Beside, Part, Staged, Turn
    from washp2p.transports.base import Buffers, Transport


def _log_nothing(applied: Sequence[Applied]) -> None:
    pass


def _do_nothing() -> None:
    pass


class Exchange:
    """One member's rounds. A mean is taken once no more values for it will arrive.

    `add`, `consensus` and `weight` are passed to Merger, `room` to Arrivals.
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
        """Writes received values into the store."""
        self._item_bytes = [slot.item_bytes for slot in store.layout.slots]
        self._scalar_bytes = sum(self._item_bytes)
        self._outgoing = store.staging()
        self._outbox = outbox
        self._sent: Turn = (0, FIRST)
        """The last turn posted."""
        self._end: tuple[int, int] | None = None
        self.generation = 0
        """The generation of the last leg sent."""
        self.arrivals = Arrivals(self._item_bytes, refusals, room)
        """The frames that have arrived, and the values still expected."""

    def send(self, number: int, staged: Staged, waits: int = 0) -> None:
        """Gather and post this member's values of round `number`, and expect those of others.

        The values are sent as soon as they have left the device. Rounds between the last one and
        this are skipped. `waits` is the share of its time, per mille, that this member waits for
        peers. Raises UsageError if `Store.refresh` does.
        """
        plan, roster = staged.plan, staged.roster
        self._store.refresh()
        measured, self._measure = self._measure, False
        leg = Leg(
            number,
            roster.generation,
            plan.fingerprint,
            {p: (begin, end) for p, begin, end in self._present(staged.of, number)},
            slots=len(self._item_bytes),
            staged=staged,
            measured=measured,
        )
        messages = self._gather(leg, staged, waits)
        if measured or self.merger.keeps(plan):
            leg.own = self._store.keep(staged.receive)
        self.merger.measuring |= measured
        hold_points.reach(hold_points.BEFORE_SEND, number)
        self._outbox.post(messages)
        self._expect(leg)

    def send_beside(self, number: int, roster: Roster, beside: Beside) -> None:
        """Send extra vectors after a round's values, and expect the extra vectors of others."""
        absent = self.arrivals.absent
        counts = [(p, count) for p, count in beside.incoming.items() if not absent(p, number)]
        leg = Leg(
            number,
            roster.generation,
            beside.fingerprint,
            {peer: (0, count) for peer, count in counts},
            beside.leg,
            beside=beside,
        )
        to = {p: [vector] for p, vector in beside.outgoing.items() if not absent(p, number)}
        self._send_vectors(leg, to, beside.kind)
        self._expect(leg)

    def measure(self) -> None:
        """In the next round estimate how far members are apart, unless this is under way."""
        self._measure = self._consensus is not None and not self.merger.measuring

    @property
    def distance(self) -> float:
        """The last estimate of `Consensus.distance`, or a negative number if there is none.

        The number is negative, too, if this member has diverged.
        """
        distance = -1.0 if self._consensus is None else self._consensus.distance
        return distance if isfinite(distance) else -1.0

    def flush(self) -> None:
        """Return once everything posted has left the device and is sent."""
        self._outbox.flush()

    def end(self, last: int, number: int, peers: Iterable[MemberId]) -> None:
        """Tell `peers` that this member takes part in no round after `last`.

        It takes part again once average `number` is taken.
        """
        self.flush()
        self._end = (last, number)
        for peer in peers:
            self.greet(peer)

    def go_on(self) -> None:
        """Continue with rounds: all members have taken the average."""
        assert self._end is not None
        _, number = self._end
        self._end = None
        self.arrivals.go_on(number)

    def greet(self, peer: MemberId) -> None:
        """Tell a new `peer` the last round that this member takes part in, if `end` named one."""
        if self._end is not None:
            end = End(self._run, self._me, peer, self.generation, *self._end)
            self._transport.send(peer, Kind.AVERAGE, headers.encode(end))

    def resume(self, peer: MemberId) -> None:
        """Tell `peer`, whose connection works again, the last round and leg that were sent to it.

        Of these and earlier frames, `peer` then counts as lost what has not arrived. Does not
        block.
        """
        self.flush()
        header = headers.encode(Posted(self._run, self._me, peer, *self._sent))
        self._transport.send(peer, Kind.EXCHANGE, header)
        self.greet(peer)

    def apply(self, log: Callable[[Sequence[Applied]], None] = _log_nothing) -> list[Applied]:
        """Apply the values that have arrived, in ascending order of rounds.

        Returns what was applied. `log` is called with the same list. Only then is anything sent
        that depends on these values, such as the second leg of a mean.
        """
        done: list[Applied] = []
        then: list[Callable[[], None]] = []
        older_waits = False
        for leg in self.arrivals:
            if leg.staged is not None and leg.staged.plan.mean is None:
                if leg.arrived or leg.lost:
                    done.append(leg.to_log)
                    self.merger.merge(leg, leg.staged, older_waits=older_waits)
                if leg.measured:
                    self.merger.conclude(leg, leg.staged)
                older_waits = older_waits or bool(leg.missing)
            elif leg.missing:
                continue  # a mean, and extra vectors, are of all that will come
            else:
                if leg.leg != SURVEY:
                    done.append(leg.to_log)
                then.append(self._finish(leg))
            self.arrivals.settle(leg)
        if self.merger.remembers:
            self.merger.forget(self.arrivals.oldest)
        log(done)
        for follow_up in then:
            follow_up()
        return done

    def _gather(self, leg: Leg, staged: Staged, waits: int) -> Messages:
        """Gather a round's values for each peer: on the device if the transport takes them from
        there, else on the host. Returns the messages.
        """
        parts = self._present(staged.to, leg.number)
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
            memory = self._outgoing.memory  # the same values, as bytes
        messages: list[tuple[MemberId, int, Buffers]] = []
        for peer, begin, end in parts:
            buffers: Buffers
            if peer in direct:
                buffers = [vector[begin:end] for vector in picked]
            else:
                sized = zip(memory, self._item_bytes, strict=True)
                buffers = [view[begin * size : end * size] for view, size in sized]
            messages.append((peer, (end - begin) * self._scalar_bytes, buffers))
        return Messages(marks, self._header(leg, waits), messages)

    def _finish(self, leg: Leg) -> Callable[[], None]:
        """Use a leg of which no more will arrive, of a mean or of extra vectors.

        In leg 0 of a mean this member makes the mean of its shard and pulls its values towards it.
        In leg 1 it pulls towards the means that others have sent. Returns a function to call once
        the log has the leg: it sends this member's mean, or uses the extra vectors.
        """
        if leg.beside is not None:
            came = {sender: self.merger.vector(data) for sender, (_, data) in leg.arrived.items()}
            return partial(leg.beside.finish, came)
        staged = leg.staged
        assert staged is not None
        if leg.leg == SECOND:
            self.merger.take_means(staged, leg.arrived)
            return _do_nothing
        reduced = self.merger.reduce(staged, leg.own, leg.arrived)
        if leg.arrived:
            self.merger.pull(staged.receive, reduced)
        return partial(self._send_means, leg, staged, reduced) if staged.legs > 1 else _do_nothing

    def _send_means(self, first: Leg, staged: Staged, reduced: Vectors) -> None:
        """Send this member's mean to its contributors, and expect the means of other shards."""
        number = first.number
        leg = Leg(
            number,
            first.generation,
            first.fingerprint,
            {p: (begin, end) for p, begin, end in self._present(staged.to, number)},
            SECOND,
            first.slots,
            staged=staged,
        )
        to = [peer for peer, _, _ in self._present(staged.of, number)]
        self._send_vectors(leg, dict.fromkeys(to, reduced), Kind.EXCHANGE)
        self._expect(leg)

    def _header(self, leg: Leg, waits: int = 0) -> Frame:
        return Frame(
            self._run,
            self._me,
            self._me,
            leg.generation,
            leg.number,
            leg.slots,
            waits,
            leg.fingerprint,
            leg.leg,
        )

    def _present(self, parts: Sequence[Part], number: int) -> Sequence[Part]:
        """The parts of a route, except those of members that are absent from round `number`."""
        if not self.arrivals.last_rounds:
            return parts
        return [part for part in parts if not self.arrivals.absent(part[0], number)]

    def _send_vectors(self, leg: Leg, outgoing: dict[MemberId, Vectors], kind: Kind) -> None:
        """Send each peer its vectors, once made on the device, after all messages posted before."""
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
        self._outbox.post(Messages([], self._header(leg), parts, kind))

    def _expect(self, leg: Leg) -> None:
        """Expect other members' values of a leg whose own values this member has posted."""
        self.generation, self._sent = leg.generation, leg.turn
        self.arrivals.expect(leg)
