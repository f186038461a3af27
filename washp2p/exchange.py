"""The exchange: one round from seed to scatter. The one meeting of a strategy with a transport.

    seed -> plan -> gather -> post -> wait -> scatter          (lockstep: section 4, S = 0)

The caller hands in arriving frames and does the waiting; nothing here touches a socket's receiving
end or a clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from washp2p.errors import ProtocolError
from washp2p.frames import Frame, headers
from washp2p.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.plan import Plan, Route
    from washp2p.rounds import MemberId, Roster
    from washp2p.runlog import RunLog
    from washp2p.store import Store
    from washp2p.strategies import Strategy
    from washp2p.transports import Buffer, Transport


class Staging:
    """Reusable memory for the values of one direction: a vector for each slot, grown as needed."""

    def __init__(self, store: Store) -> None:
        self._device = store.device
        self._dtypes = [getattr(torch, slot.dtype) for slot in store.layout.slots]
        self._vectors: list[torch.Tensor] = []

    def take(self, count: int) -> list[torch.Tensor]:
        """`count` values of every slot, on the store's device; the last ones taken are lost."""
        if not self._vectors or len(self._vectors[0]) < count:
            room = count + count // 4
            self._vectors = [
                torch.empty(room, dtype=dtype, device=self._device) for dtype in self._dtypes
            ]
        return [vector[:count] for vector in self._vectors]


def as_bytes(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, shared, whatever its dtype."""
    return values.view(torch.uint8).numpy().data


class Exchange:
    """Lockstep rounds of one member in one epoch."""

    def __init__(
        self,
        *,
        store: Store,
        strategy: Strategy,
        transport: Transport,
        roster: Roster,
        me: MemberId,
        run: bytes,
        log: RunLog | None,
    ) -> None:
        self._store = store
        self._strategy = strategy
        self._transport = transport
        self._roster = roster
        self._members = roster.members
        self._me = me
        self._run = run
        self._log = log
        self._outgoing = Staging(store)
        self._incoming = Staging(store)
        self._held: dict[tuple[int, MemberId], tuple[Frame, Sequence[Buffer]]] = {}
        self._round = 0
        strategy.prepare(store.layout, len(self._members), roster.position(me))

    def accept(self, frame: Frame, buffers: Sequence[Buffer]) -> None:
        """Hold an arriving frame until its round. Raises ProtocolError if it cannot be one."""
        if frame.epoch != self._roster.epoch or frame.sender not in self._members:
            raise ProtocolError(
                f"frame of epoch {frame.epoch} from member {frame.sender}; expected epoch "
                f"{self._roster.epoch} and one of {self._members}"
            )
        if frame.round < self._round or (frame.round, frame.sender) in self._held:
            raise ProtocolError(f"frame of round {frame.round} from member {frame.sender} again")
        self._held[frame.round, frame.sender] = (frame, buffers)

    def run_round(
        self, number: int, seed: int, wait_until: Callable[[Callable[[], bool]], None]
    ) -> None:
        """Do round `number`, which follows the member's optimizer step of the same number.

        `wait_until(condition)` blocks, handing arriving frames to `accept`, until the condition
        holds. Raises ProtocolError if a peer sent what its plan cannot have been.
        """
        self._round = number
        plan = self._strategy.plan(seed)
        if plan is None:
            return
        self._post(plan, number)
        senders = [m for p, m in enumerate(self._members) if plan.receive.count(p)]
        wait_until(lambda: all((number, sender) in self._held for sender in senders))
        self._apply(plan, number)
        if self._log is not None:
            self._log.append(
                step=number, epoch=self._roster.epoch, round_number=number, applied=senders
            )

    def _post(self, plan: Plan, number: int) -> None:
        values = self._outgoing.take(len(plan.send.indices))
        self._store.gather(self._on_device(plan.send), values)
        views = [as_bytes(vector.cpu()) for vector in values]
        header = headers.encode(
            Frame(
                self._run,
                self._me,
                self._roster.epoch,
                number,
                len(views),
                plan.fingerprint,
            )
        )
        items = [slot.item_bytes for slot in self._store.layout.slots]
        for peer, begin, end in self._groups(plan.send):
            parts = [view[begin * s : end * s] for view, s in zip(views, items, strict=True)]
            self._transport.ledger.expect(peer, (end - begin) * sum(items))
            self._transport.send(peer, Kind.EXCHANGE, header, parts)

    def _apply(self, plan: Plan, number: int) -> None:
        values = self._incoming.take(len(plan.receive.indices))
        host = [vector.cpu() for vector in values]
        views = [np.asarray(as_bytes(vector)) for vector in host]
        items = [slot.item_bytes for slot in self._store.layout.slots]
        for peer, begin, end in self._groups(plan.receive):
            frame, buffers = self._held.pop((number, peer))
            self._check(frame, buffers, plan, [(end - begin) * s for s in items])
            for view, buffer, size in zip(views, buffers, items, strict=True):
                view[begin * size : end * size] = np.frombuffer(buffer, dtype=np.uint8)
        for vector, filled in zip(values, host, strict=True):
            if filled is not vector:
                vector.copy_(filled)
        if unforeseen := [sender for round_number, sender in self._held if round_number <= number]:
            raise ProtocolError(
                f"members {unforeseen} sent values in round {number} that the plan here does not "
                "foresee; expected the same plan everywhere: run the same version, or report this"
            )
        self._store.scatter(self._on_device(plan.receive), values)

    def _check(self, frame: Frame, buffers: Sequence[Buffer], plan: Plan, sizes: list[int]) -> None:
        if frame.fingerprint != plan.fingerprint:
            raise ProtocolError(
                f"member {frame.sender} derived another plan for round {frame.round}: fingerprint "
                f"{frame.fingerprint:016x}, here {plan.fingerprint:016x}; expected the same plan "
                "everywhere: run the same version on the same kind of platform, or report this"
            )
        got = [buffer.nbytes for buffer in buffers]
        if got != sizes or frame.slots != len(sizes):
            raise ProtocolError(
                f"member {frame.sender} sent {got} bytes in round {frame.round}; the plan says "
                f"{sizes}: run the same version everywhere, or report this"
            )

    def _groups(self, route: Route) -> list[tuple[MemberId, int, int]]:
        bounds = route.bounds
        return [
            (member, bounds[position], bounds[position + 1])
            for position, member in enumerate(self._members)
            if bounds[position] < bounds[position + 1]
        ]

    def _on_device(self, route: Route) -> torch.Tensor:
        return torch.from_numpy(route.indices).to(self._store.device)
