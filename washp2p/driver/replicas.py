"""One member on several devices: the ranks of a `DistributedDataParallel` group.

Rank 0 of the group is the member and exchanges values. The other ranks are its replicas: they copy
what rank 0 writes in each round. Rank 0 broadcasts in the model's own group, within the optimizer's
step. It sends an order (three int64), then the tensors that the order announces.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

import msgpack
import torch
import torch.distributed as dist
from safetensors.torch import load, save

from washp2p.config.config import RunConfig
from washp2p.driver.grad_scaler import Attempts
from washp2p.errors import RunStoppedError, UsageError
from washp2p.model.parameters import plain_model
from washp2p.model.snapshot import Snapshot, open_snapshot, restore, take
from washp2p.model.store import Store
from washp2p.strategies import strategy_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from washp2p.model.store import State

_START, _ROUND, _END, _WAIT, _PAUSE, _AVERAGE = range(6)
WAIT_SECONDS = 60.0
"""While rank 0 waits for other members, it sends the other ranks an order to wait this often."""


def wrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The live DistributedDataParallel that holds `model`; `model` itself if there is none.

    Trainers give their callbacks the inner model only, so all live objects are searched.
    """
    if not (dist.is_available() and dist.is_initialized()) or group_of(model) is not None:
        return model
    inner = plain_model(model)[0]
    for referrer in gc.get_objects():
        if isinstance(referrer, torch.nn.parallel.DistributedDataParallel):
            held = referrer._modules.get("module")
            if held is not None and plain_model(held)[0] is inner:
                return referrer
    return model


def group_of(model: torch.nn.Module) -> dist.ProcessGroup | None:
    """The process group over which a model is replicated, compiled or not; None without one."""
    while isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
        model = inner
    if not isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return None
    group: dist.ProcessGroup = model.process_group
    return group if group.size() > 1 else None


class _Channel:
    """Broadcasts from rank 0 of a group, by tensors on the model's device. Blocks."""

    def __init__(self, group: dist.ProcessGroup, model: torch.nn.Module) -> None:
        self._group = group
        self._first = dist.get_global_rank(group, 0)
        self.device = next(model.parameters()).device
        """The device on which shared tensors must be."""

    def give_order(self, *numbers: int) -> None:
        """Broadcast an order of three numbers. Rank 0 calls this."""
        self.share(torch.tensor(numbers, dtype=torch.int64, device=self.device))

    def take_order(self) -> tuple[int, int, int]:
        """Receive orders up to the first that is not `_WAIT`; return it. Not for rank 0."""
        order = torch.tensor([_WAIT, 0, 0], dtype=torch.int64, device=self.device)
        while order[0] == _WAIT:
            self.share(order)
        kind, first, second = order.tolist()
        return kind, first, second

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy rank 0's values into the `tensor` of every rank. Returns `tensor`."""
        dist.broadcast(tensor, self._first, group=self._group)
        return tensor

    def send_bytes(self, data: bytes) -> None:
        self.share(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device))

    def receive_bytes(self, length: int) -> bytes:
        empty = torch.empty(length, dtype=torch.uint8, device=self.device)
        return self.share(empty).cpu().numpy().tobytes()


class Replicas:
    """Rank 0's side: it sends orders to the other ranks. It sends nothing after `end`."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> Self | None:
        """The replicas of a model; None if it is not replicated.

        Raises UsageError on ranks other than 0, which have to `follow`.
        """
        group = group_of(model)
        if group is None:
            return None
        if group.rank():
            raise UsageError(
                f"this process is rank {group.rank()} of its model's group; expected rank 0 to "
                "join: use washp2p.follow(model, optimizer) here"
            )
        return cls(_Channel(group, model))

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._ended = self._paused = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Keep the other ranks waiting while a block runs, so that their collectives do not time
        out. If the block raises, the other ranks are told that the member has left the run.
        """
        done = Event()

        def keep_on() -> None:
            while not done.wait(WAIT_SECONDS):
                self._channel.give_order(_WAIT, 0, 0)

        thread = Thread(target=keep_on, name="washp2p replicas", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            done.set()
            thread.join()
            self.end(early=True)
            raise
        done.set()
        thread.join()

    def start(self, told: dict[str, Any], store: Store, where: Snapshot) -> None:
        """Broadcast `told` and the whole state of `store`, which tracks writes from then on."""
        packed, state = msgpack.packb(told), take(store, where)
        store.keep_track()
        self._channel.give_order(_START, len(packed), len(state))
        self._channel.send_bytes(packed)
        self._channel.send_bytes(state)

    def pause(self, number: int, store: Store) -> None:
        """Broadcast the last written values, before an average. Afterwards the replicas may
        close or go on.
        """
        self.after_round(number, store, _PAUSE)
        self._paused = True

    def after_round(self, number: int, store: Store, order: int = _ROUND) -> None:
        """Broadcast the values written in all slots since the last call; `number` is the round."""
        if self._ended or (self._paused and order == _PAUSE):
            return
        self._paused = False
        written = store.take_written()
        places = store.copies.upload(written)
        values = [places.device, *(store.keep(places) if len(written) else ())]
        if places.device.is_cuda:  # it was made in other streams than that of training
            for vector in values:
                vector.record_stream(torch.cuda.current_stream(places.device.device))
        self._channel.give_order(order, number, len(written))
        for vector in values if len(written) else ():
            self._channel.share(vector)

    def share_average(self, averaged: State, members: tuple[int, ...]) -> None:
        """Broadcast the average and the members it is over. To be called after `pause`."""
        if not self._ended:
            data = save({name: vector.clone() for name, vector in averaged.items()})
            packed = msgpack.packb(members)
            self._channel.give_order(_AVERAGE, len(packed), len(data))
            self._channel.send_bytes(packed)
            self._channel.send_bytes(data)

    def end(self, *, early: bool) -> None:
        """Tell the other ranks that no round follows. Harmless when called twice.

        `early` says that the member has left the run; the replicas then raise RunStoppedError.
        """
        if not self._ended:
            self._ended = True
            if early or not self._paused:
                self._channel.give_order(_END, int(early), 0)


class Replica:
    """A rank that trains a member together with rank 0, which has joined the run. `follow`
    makes it.
    """

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
        """Whether this rank's part in the run is over."""
        self._averaged: State | None = None
        self._hook: RemovableHandle | None = None
        self._attempts: Attempts | None = None
        self._channel = _Channel(group, model)
        kind, first, second = self._channel.take_order()
        if kind != _START:
            self._gone()
        wire: Any = msgpack.unpackb(self._channel.receive_bytes(first))
        self.config = RunConfig.from_wire(wire["config"])
        self.id: int = wire["member"]
        """The MemberId of the member that it belongs to."""
        self.members: tuple[int, ...] = tuple(wire["members"])
        """The run's members when this one joined; after an average, those averaged over."""
        slots = strategy_for(self.config).slots(optimizer)
        last, rules = wire["last"], wire["buffers"]
        self._store = Store(model, optimizer, slots, last=last, buffers=rules)
        opened = open_snapshot(self._channel.receive_bytes(second))
        restore(self._store, opened)
        self._round = opened.snapshot.round
        self._hook = optimizer.register_step_post_hook(lambda *_: self._follow())
        if scaler is not None:
            self._attempts = Attempts(scaler, optimizer, self._follow)

    @property
    def round(self) -> int:
        """The number of the last round that the member took part in."""
        return self._round

    def average(self, final: object = None, *, trainable_only: bool = False) -> dict[str, Any]:
        """The state dict of the averaged model, equal to what rank 0's `average` returns.

        Call it on all ranks where rank 0 calls it, and only once after each step. Rank 0's `final`
        counts; `final` is ignored here. With `trainable_only`, only the trainable parameters are
        returned. Blocks. Raises RunStoppedError.
        """
        while self._averaged is None:
            self._take_any()
        return self._store.state_dict(self._averaged, trainable_only=trainable_only)

    def close(self) -> None:
        """Wait until the member takes an average or closes, then end.

        Blocks. The model then has the member's last values. Harmless when called twice. Raises
        RunStoppedError if the member has left the run early.
        """
        while not self.closed and self._averaged is None:
            self._take_any()
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
        """Write the values of the round after a step. Raises RunStoppedError if no round comes."""
        if not self._average_comes_first():
            self._gone()

    def _average_comes_first(self) -> bool:
        """Carry out orders up to the next round or the end. Returns whether a round came."""
        self._averaged = None
        while True:
            kind = self._take_any()
            if kind in {_ROUND, _END}:
                return kind == _ROUND

    def _take_any(self) -> int:
        """Receive the next order, of any kind, and carry it out. Returns its kind."""
        kind, first, second = self._channel.take_order()
        if kind in {_ROUND, _PAUSE}:
            self._take(first, second)
        elif kind == _AVERAGE:
            self.members = tuple(msgpack.unpackb(self._channel.receive_bytes(first)))
            self._averaged = load(self._channel.receive_bytes(second))
        elif kind == _END and not first:
            self._unhook()
        else:
            self._gone()
        return kind

    def _take(self, number: int, count: int) -> None:
        """Receive the `count` values that the member wrote in round `number`, and write them."""
        self._round = number
        self._store.refresh()
        if count:
            device = self._store.device
            indices = self._channel.share(torch.empty(count, dtype=torch.int64, device=device))
            values = [
                self._channel.share(torch.empty(count, dtype=dtype, device=device))
                for dtype in self._store.dtypes
            ]
            places = self._store.copies.upload(indices.cpu().numpy())
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
