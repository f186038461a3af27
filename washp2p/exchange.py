"""The exchange: from gather to scatter. The one meeting of a strategy's plan with a transport.

    plan -> gather -> post -> (frames arrive) -> merge -> scatter

Rounds may be outstanding; what has arrived of them is applied in ascending order. The caller hands
in arriving frames and does the waiting; nothing here touches a socket's receiving end or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from washp2p.errors import ProtocolError
from washp2p.frames import End, Frame, headers
from washp2p.ledger import Kind
from washp2p.newest import NewestWrites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.plan import Plan
    from washp2p.rounds import MemberId, Roster
    from washp2p.store import Store
    from washp2p.transports import Buffer, Transport

HELD_BYTES = 64 << 20
"""What early frames may take; one that would be too much is dropped and counts as expired."""


class Staging:
    """Reusable host memory for the values of one direction: a vector a slot, grown as needed.

    `memory` are the vectors' bytes, as long as they are.
    """

    def __init__(self, store: Store) -> None:
        self._dtypes = [getattr(torch, slot.dtype) for slot in store.layout.slots]
        self._pin = store.device.type == "cuda"
        self._vectors: list[torch.Tensor] = []
        self._room = 0
        self.memory: list[memoryview] = []

    def take(self, count: int) -> list[torch.Tensor]:
        """`count` values of every slot, on the host; the last ones taken are lost."""
        if not self._vectors or self._room < count:
            self._room = room = count + count // 4
            self._vectors = [
                torch.empty(room, dtype=dtype, pin_memory=self._pin) for dtype in self._dtypes
            ]
            self.memory = [as_bytes(vector) for vector in self._vectors]
        return [vector[:count] for vector in self._vectors]


def as_bytes(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, shared, whatever its dtype."""
    return values.view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Staged:
    """A plan and its indices where the store can use them."""

    plan: Plan
    send: torch.Tensor
    receive: torch.Tensor

    @property
    def bytes(self) -> int:
        """What the indices take."""
        return self.send.nbytes + self.receive.nbytes


def stage(plan: Plan | None, device: torch.device) -> Staged | None:
    """Bring a plan's indices to `device`. Made to run ahead of need, on the planner's thread."""
    if plan is None:
        return None
    return Staged(
        plan,
        torch.from_numpy(plan.send.indices).to(device),
        torch.from_numpy(plan.receive.indices).to(device),
    )


class Applied(NamedTuple):
    """Of one round: whose values were applied now, and whose never will be."""

    round: int
    senders: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]


@dataclass
class _Outstanding:
    """A round that this member has gathered and not yet heard from everyone."""

    staged: Staged
    missing: dict[MemberId, tuple[int, int]]
    own: list[torch.Tensor] | None
    arrived: dict[MemberId, tuple[tuple[int, int], Buffer]] = field(default_factory=dict)
    lost: list[MemberId] = field(default_factory=list)


class Exchange:
    """The rounds of one member in one epoch.

    With `add`, late values are applied by the difference to what this member held when it
    gathered; otherwise they overwrite, except where a newer round has written (section 4).
    """

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        roster: Roster,
        me: MemberId,
        run: bytes,
        add: bool,
    ) -> None:
        self._store = store
        self._transport = transport
        self._members = roster.members
        self._me = me
        self._run = run
        self._add = add
        self._item_bytes = [slot.item_bytes for slot in store.layout.slots]
        self._scalar_bytes = sum(self._item_bytes)
        self._outgoing = Staging(store)
        self._incoming = Staging(store)
        self._round = 0
        self._outstanding: dict[int, _Outstanding] = {}
        self._early: dict[int, dict[MemberId, tuple[Frame, Buffer]]] = {}
        self._early_bytes = 0
        self._dropped: set[tuple[int, MemberId]] = set()
        self._skipped: list[range] = []
        self._last: dict[MemberId, int] = {}
        self._newest_writes = NewestWrites()
        self.epoch = roster.epoch
        self.newest = 0
        """The newest round of which any frame has arrived."""
        self.last_share = 0
        """Per mille of its time that the sender of the last frame says it waits."""
        self.applied_values = 0
        """Scalars received and applied."""
        self.expired_values = 0
        """Scalars this member should have received and never applied."""

    def post(self, number: int, staged: Staged, share: int) -> None:
        """Gather and send round `number`; those between the last one and it are skipped.

        `share` is how much of its time, per mille, this member waits. Does not block. Raises
        ProtocolError if a peer has sent what its plan cannot have been.
        """
        if number > self._round + 1:
            self._skip(range(self._round + 1, number))
        self._round = number
        values = self._outgoing.take(len(staged.plan.send.indices))
        self._store.gather(staged.send, values)
        memory, sizes = self._outgoing.memory, self._item_bytes
        plan = staged.plan
        header = headers.encode(
            Frame(self._run, self._me, self.epoch, number, len(sizes), share, plan.fingerprint)
        )
        for position, begin, end in plan.send.parts:
            peer = self._members[position]
            if self._absent(peer, number):
                continue
            parts = [view[begin * s : end * s] for view, s in zip(memory, sizes, strict=True)]
            self._transport.ledger.expect(peer, (end - begin) * self._scalar_bytes)
            self._transport.send(peer, Kind.EXCHANGE, header, parts)
        missing = {
            self._members[position]: (begin, end)
            for position, begin, end in plan.receive.parts
            if not self._absent(self._members[position], number)
        }
        own = None
        if self._add:
            own = [torch.empty(len(staged.receive), dtype=v.dtype) for v in values]
            self._store.gather(staged.receive, own)
        self._outstanding[number] = round_ = _Outstanding(staged, missing, own)
        for frame, payload in self._early.pop(number, {}).values():
            self._early_bytes -= payload.nbytes
            self._match(round_, frame, payload)
        for sender in [s for s in missing if (number, s) in self._dropped]:
            self._dropped.remove((number, sender))
            self._lose(round_, sender, count=False)

    def accept(self, frame: Frame, payload: Buffer) -> None:
        """Take an arriving frame. Raises ProtocolError if it cannot be one.

        `payload` has every slot's values, one slot after the other; it is kept until applied.
        """
        number, sender = frame.round, frame.sender
        if frame.epoch != self.epoch or sender not in self._members:
            raise ProtocolError(
                f"frame of epoch {frame.epoch} from member {sender}; expected epoch "
                f"{self.epoch} and one of {self._members}"
            )
        self.newest = max(self.newest, number)
        self.last_share = frame.waits
        self._lose_before(sender, number)
        if number > self._round:
            self._hold(frame, payload)
        elif number in self._outstanding:
            self._match(self._outstanding[number], frame, payload)
        elif (number, sender) in self._dropped:
            self._dropped.remove((number, sender))
        elif any(number in skipped for skipped in self._skipped):
            self.expired_values += payload.nbytes // self._scalar_bytes
        else:
            raise ProtocolError(f"frame of round {number} from member {sender} again")

    def end(self, last: int) -> None:
        """Tell all peers that this member takes part in no round after `last`."""
        header = headers.encode(End(self._run, self._me, self.epoch, last))
        for peer in self._members:
            if peer != self._me:
                self._transport.send(peer, Kind.AVERAGE, header)

    def ended(self, end: End) -> None:
        """A peer takes part in no round after `end.last`, and has sent all it will send."""
        self._last[end.sender] = end.last
        self._lose_before(end.sender, end.last + 1)
        for round_ in self._outstanding.values():
            round_.missing.pop(end.sender, None)

    def complete(self, upto: int) -> bool:
        """Whether nothing is to come any more of rounds up to `upto`."""
        for number, round_ in self._outstanding.items():
            if number > upto:
                return True
            if round_.missing:
                return False
        return True

    def give_up(self, before: int) -> None:
        """Wait no longer for what is missing of rounds before `before`."""
        for number, round_ in self._outstanding.items():
            if number >= before:
                return
            for sender in tuple(round_.missing):
                self._dropped.add((number, sender))
                self._lose(round_, sender)

    def apply(self) -> list[Applied]:
        """Scatter what has arrived of all rounds, in ascending order."""
        done = []
        waiting = False
        for number, round_ in list(self._outstanding.items()):
            if round_.arrived or round_.lost:
                senders = self._scatter(number, round_, newer_matter=waiting)
                done.append(Applied(number, senders, tuple(round_.lost)))
                round_.arrived.clear()
                round_.lost.clear()
            if round_.missing:
                waiting = True
            else:
                del self._outstanding[number]
        if len(self._newest_writes):
            oldest = next(iter(self._outstanding), self._round + 1)
            self._newest_writes.forget(oldest)
        return done

    def _scatter(
        self, number: int, round_: _Outstanding, *, newer_matter: bool
    ) -> tuple[MemberId, ...]:
        """Merge one round's arrived values into the store. Returns their senders.

        `newer_matter`: an older round is outstanding and must not overwrite what is written now.
        """
        staged, arrived = round_.staged, round_.arrived
        count = sum(end - begin for (begin, end), _ in arrived.values())
        if not count:
            return ()
        values = self._incoming.take(count)
        everything = count == len(staged.plan.receive.indices)
        at = 0
        for (begin, end), payload in arrived.values():
            at = begin if everything else at
            first = 0
            for view, size in zip(self._incoming.memory, self._item_bytes, strict=True):
                last = first + (end - begin) * size
                view[at * size : (at + end - begin) * size] = payload[first:last]
                first = last
            at += end - begin
        self.applied_values += count
        spans = [] if everything else [span for span, _ in arrived.values()]
        indices = _pick(staged.receive, spans)
        if self._add:
            assert round_.own is not None
            held = [torch.empty_like(vector) for vector in values]
            self._store.gather(indices, held)
            for value, own, now in zip(values, round_.own, held, strict=True):
                value.sub_(_pick(own, spans)).add_(now)
        else:
            places = indices.cpu().numpy() if newer_matter or len(self._newest_writes) else None
            if len(self._newest_writes):
                assert places is not None
                free = torch.from_numpy(self._newest_writes.free(places, number))
                if not bool(free.all()):
                    values = [vector[free] for vector in values]
                    indices = indices[free.to(indices.device)]
            if newer_matter:
                assert places is not None
                self._newest_writes.note(places, number)
        self._store.scatter(indices, values)
        return tuple(arrived)

    def _match(self, round_: _Outstanding, frame: Frame, payload: Buffer) -> None:
        sender, plan = frame.sender, round_.staged.plan
        span = round_.missing.get(sender)
        if span is None:
            if (frame.round, sender) in self._dropped:
                self._dropped.remove((frame.round, sender))
                return
            if sender in round_.arrived:
                raise ProtocolError(f"frame of round {frame.round} from member {sender} again")
            raise ProtocolError(
                f"member {sender} sent values in round {frame.round} that the plan here does not "
                "foresee; expected the same plan everywhere: run the same version, or report this"
            )
        if frame.fingerprint != plan.fingerprint:
            raise ProtocolError(
                f"member {sender} derived another plan for round {frame.round}: fingerprint "
                f"{frame.fingerprint:016x}, here {plan.fingerprint:016x}; expected the same plan "
                "everywhere: run the same version on the same kind of platform, or report this"
            )
        size = (span[1] - span[0]) * self._scalar_bytes
        if payload.nbytes != size or frame.slots != len(self._item_bytes):
            raise ProtocolError(
                f"member {sender} sent {payload.nbytes} bytes of {frame.slots} slots in round "
                f"{frame.round}; the plan says {size} of {len(self._item_bytes)}: run the same "
                "version everywhere, or report this"
            )
        del round_.missing[sender]
        round_.arrived[sender] = (span, payload)

    def _hold(self, frame: Frame, payload: Buffer) -> None:
        held = self._early.setdefault(frame.round, {})
        if frame.sender in held:
            raise ProtocolError(f"frame of round {frame.round} from member {frame.sender} again")
        size = payload.nbytes
        if self._early_bytes + size > HELD_BYTES:
            self._dropped.add((frame.round, frame.sender))
            self.expired_values += size // self._scalar_bytes
            return
        held[frame.sender] = (frame, payload)
        self._early_bytes += size

    def _skip(self, rounds: range) -> None:
        """Leave out `rounds`: what was sent to this member in them expires."""
        self._skipped = [r for r in self._skipped if r.stop > rounds.start - 10_000] + [rounds]
        for number in [number for number in self._early if number in rounds]:
            for _, payload in self._early.pop(number).values():
                self._early_bytes -= payload.nbytes
                self.expired_values += payload.nbytes // self._scalar_bytes

    def _lose_before(self, sender: MemberId, number: int) -> None:
        """Messages come in order: what `sender` has not sent before round `number` never comes."""
        for earlier, round_ in self._outstanding.items():
            if earlier >= number:
                return
            if sender in round_.missing:
                self._lose(round_, sender)

    def _lose(self, round_: _Outstanding, sender: MemberId, *, count: bool = True) -> None:
        begin, end = round_.missing.pop(sender)
        self.expired_values += (end - begin) * count
        round_.lost.append(sender)

    def _absent(self, peer: MemberId, number: int) -> bool:
        return self._last.get(peer, number) < number


def _pick(vector: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The values of `vector` in `spans`; the vector itself if there are none."""
    return torch.cat([vector[begin:end] for begin, end in spans]) if spans else vector
