"""One member on several devices: the replicas of a `DistributedDataParallel` group.

Rank 0 of the group is the member and exchanges; the others are its replicas, and take over what a
round has written. All that passes between them is broadcast in the model's own group, within the
optimizer's step: an order (three int64), and what it announces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgpack
import torch
import torch.distributed as dist

from washp2p.config import RunConfig
from washp2p.errors import RunStoppedError, UsageError
from washp2p.scaler import Attempts
from washp2p.snapshot import Snapshot, restore, take
from washp2p.store import Store
from washp2p.strategies import strategy_for

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

_START, _ROUND, _END = range(3)


def group_of(model: torch.nn.Module) -> dist.ProcessGroup | None:
    """The group over which a model is replicated, if it is; compiled or not."""
    while isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
        model = inner
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return None
    group: dist.ProcessGroup = model.process_group
    return group if group.size() > 1 else None


def refuse_but_the_first(model: torch.nn.Module) -> None:
    """Raise UsageError where another process is the member."""
    group = group_of(model)
    if group is not None and group.rank():
        raise UsageError(
            f"this process is rank {group.rank()} of its model's group; expected rank 0 to join: "
            "use washp2p.follow(model, optimizer) here"
        )


class _Channel:
    """Broadcasts from rank 0 of a group, by tensors on the model's device. Blocks."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group = group
        self._device = device
        self._first = dist.get_global_rank(group, 0)

    def order(self, *numbers: int) -> tuple[int, ...]:
        """Three numbers, as rank 0 gives them."""
        tensor = torch.tensor(numbers or (0, 0, 0), dtype=torch.int64, device=self._device)
        self.share(tensor)
        return tuple(tensor.tolist())

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's values, in everybody's tensor."""
        dist.broadcast(tensor, self._first, group=self._group)
        return tensor

    def send_bytes(self, data: bytes) -> None:
        self.share(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device))

    def receive_bytes(self, length: int) -> bytes:
        empty = torch.empty(length, dtype=torch.uint8, device=self._device)
        return self.share(empty).cpu().numpy().tobytes()


class Replicas:
    """The member's end."""

    def __init__(self, group: dist.ProcessGroup, store: Store) -> None:
        self._store = store
        self._channel = _Channel(group, store.device)

    def start(self, config: RunConfig, where: Snapshot) -> None:
        """Give the others the run's configuration and the member's whole state."""
        packed, state = msgpack.packb(config.to_wire()), take(self._store, where)
        self._channel.order(_START, len(packed), len(state))
        self._channel.send_bytes(packed)
        self._channel.send_bytes(state)
        self._store.keep_track()

    def after_round(self, number: int) -> None:
        """Give the others what was written since last time: every slot's values."""
        written = self._store.take_written()
        self._channel.order(_ROUND, number, len(written))
        if len(written):
            places = self._store.lane.upload(written)
            values = self._store.keep(places)
            self._channel.share(places.device)
            for vector in values:
                self._channel.share(vector)

    def end(self, *, early: bool) -> None:
        """Tell the others that no round follows."""
        self._channel.order(_END, int(early), 0)


class Replica:
    """A process that trains a member with others, and is not the one that joins. By `follow`."""

    config: RunConfig
    """The run's configuration."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        group = group_of(model)
        if group is None or not group.rank():
            raise UsageError(
                "follow is for ranks 1 and up of a model in DistributedDataParallel; expected "
                "washp2p.join here"
            )
        self.closed = False
        """Whether its part in the run is over."""
        self._hook: RemovableHandle | None = None
        self._attempts: Attempts | None = None
        self._channel = _Channel(group, next(model.parameters()).device)
        kind, first, second = self._channel.order()
        if kind != _START:
            self._gone()
        wire: Any = msgpack.unpackb(self._channel.receive_bytes(first))
        self.config = RunConfig.from_wire(wire)
        self._store = Store(model, optimizer, strategy_for(self.config).slots(optimizer))
        self._round = restore(self._store, self._channel.receive_bytes(second)).round
        self._hook = optimizer.register_step_post_hook(lambda *_: self._follow())
        if scaler is not None:
            self._attempts = Attempts(scaler, optimizer, self._follow)

    @property
    def round(self) -> int:
        """The last of the rounds that its member took part in: the population's clock."""
        return self._round

    def close(self) -> None:
        """End with the member, which calls its own `close`. Blocks. Harmless when called twice.

        Raises RunStoppedError if the member's part was over before.
        """
        if not self.closed:
            kind, early, _ = self._channel.order()
            if kind != _END or early:
                self._gone()
            self._unhook()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._unhook()

    def _follow(self) -> None:
        """What follows an optimizer step: the member's round, as far as it has written."""
        kind, number, count = self._channel.order()
        if kind != _ROUND:
            self._gone()
        self._round = number
        self._store.look()
        if count:
            device = self._store.device
            indices = self._channel.share(torch.empty(count, dtype=torch.int64, device=device))
            values = [
                self._channel.share(torch.empty(count, dtype=dtype, device=device))
                for dtype in self._store.dtypes
            ]
            places = self._store.lane.upload(indices.cpu().numpy())
            self._store.scatter(places, values)

    def _unhook(self) -> None:
        self.closed = True
        for attached in (self._hook, self._attempts):
            if attached is not None:
                attached.remove()
        self._hook = self._attempts = None

    def _gone(self) -> None:
        self._unhook()
        raise RunStoppedError("the first process of this member has left the run, and says why")
