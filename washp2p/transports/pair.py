"""Two ranks of `torch.distributed`: one sends, the other receives. All calls block.

Each pair is a process group of its own. The ranks meet at the sender's TCPStore. Store and gloo are
bound to loopback, in plain text; NCCL's own sockets are where NCCL_SOCKET_IFNAME says. Every
operation has its own tag and its own deadline, and names its source. gloo keeps deadlines itself.
For NCCL this module polls the device, and aborts the group when time is up: torch's watchdog for
NCCL takes minutes, and then ends the process. Only the set-up of an NCCL pair has no deadline.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from washp2p.protocol.patience import Patience

LOOPBACK = "127.0.0.1"
PIECE = 64 << 20
"""The most bytes of one operation. Each operation has a deadline of its own."""
POLL_SECONDS = 50e-6
TAGS = 1 << 31
_WATCH = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_LOCK = Lock()

_torch: Any = distributed


class Pair:
    """One end of a pair: rank 1 sends, rank 0 receives. Raises RuntimeError once the connection
    is over.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        device: torch.device,
        patience: Patience,
        gloo: Any,
    ) -> None:
        self._wait = timedelta(seconds=patience.dead)
        self._idle = timedelta(seconds=patience.seconds)
        self._turns = timedelta(seconds=patience.back)
        self._other = 1 - rank
        self._device = device
        self._tag = count()
        options = _torch.ProcessGroupGloo._Options()
        options._devices = [gloo]
        options._threads = 1
        options._timeout = timedelta(seconds=patience.seconds)
        self._gloo = _torch.ProcessGroupGloo(store, rank, 2, options)
        self._nccl: Any = None
        if device.type == "cuda":
            options = _torch.ProcessGroupNCCL.Options()
            store = _torch.PrefixStore("nccl", store)
            with _LOCK, _without_a_watch_that_ends_the_process():
                self._nccl = _torch.ProcessGroupNCCL(store, rank, 2, options)
            self._nccl.eager_connect_single_device(device)
            self._stream = torch.cuda.Stream(device, priority=-rank)

    def send(self, tensor: torch.Tensor) -> None:
        """Send bytes (uint8). Blocks until the other end has taken all but the last of them,
        which may be in a buffer.
        """
        for piece in tensor.split(PIECE) if len(tensor) else ():
            if tensor.device.type == "cpu":
                self._gloo.send([piece], self._other, self._next_tag()).wait(self._wait)
            else:
                self._by_nccl(self._nccl.send, piece, self._turns)

    def send_values(self, tensors: list[torch.Tensor]) -> None:
        """Send the bytes of tensors on the device, end to end."""
        with self._beside_training():
            one = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        self.send(one)

    def recv(self, into: torch.Tensor, *, idle: bool = False) -> torch.Tensor:
        """Receive bytes until the tensor `into` (uint8) is full. Returns `into`.

        With `idle`, wait for one patience instead of half of it: after idle time the other end may
        be late, because Python's threads hold each other up.
        """
        wait = self._idle if idle else self._wait
        for piece in into.split(PIECE) if len(into) else ():
            if into.device.type == "cpu":
                self._gloo.recv([piece], self._other, self._next_tag()).wait(wait)
            else:
                self._by_nccl(self._nccl.recv, piece, wait)
        return into

    def recv_values(self, size: int) -> torch.Tensor:
        """Receive `size` bytes into a new tensor (uint8) on the device."""
        with self._beside_training():
            into = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self.recv(into)

    def _beside_training(self) -> AbstractContextManager[object]:
        return nullcontext() if self._nccl is None else torch.cuda.stream(self._stream)

    def _next_tag(self) -> int:
        return next(self._tag) % TAGS

    def _by_nccl(self, operation: Callable[..., Any], piece: torch.Tensor, wait: timedelta) -> None:
        """Run an NCCL operation. Blocks until the device has done it; aborts the group after
        `wait`, and raises RuntimeError.

        torch's watchdog would take minutes. A sender may have to wait until payloads of others have
        been received, or given up.
        """
        deadline = time.monotonic() + wait.total_seconds()
        done = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            operation([piece], self._other, self._next_tag()).wait()
            done.record(self._stream)
        while not done.query():
            if time.monotonic() > deadline:
                self._nccl.abort()
                raise RuntimeError(f"NCCL has not moved {len(piece)} bytes in {wait}")
            time.sleep(POLL_SECONDS)


@contextmanager
def _without_a_watch_that_ends_the_process() -> Iterator[None]:
    """Make NCCL groups in this block without torch's watchdog.

    The watchdog may end the process when a peer is gone. A group reads the setting only when it is
    made.
    """
    before = os.environ.get(_WATCH)
    os.environ[_WATCH] = "0"
    try:
        yield
    finally:
        del os.environ[_WATCH]
        if before is not None:
            os.environ[_WATCH] = before


class Meeting:
    """Makes this member's ends of pairs. Peers that receive from it meet it at its TCPStore."""

    def __init__(self, device: torch.device, patience: Patience) -> None:
        self._device = device
        self._patience = patience
        self._gloo = _torch.ProcessGroupGloo.create_device(hostname=LOOPBACK, lazy_init=False)
        listening = socket.create_server((LOOPBACK, 0))
        self.port: int = listening.getsockname()[1]
        """The port of this member's TCPStore."""
        self._store = _torch.TCPStore(
            LOOPBACK,
            self.port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),  # else it would listen everywhere
        )

    def pair(self, port: int, name: str, rank: int) -> Pair:
        """Make this member's end, with `rank`, of the pair `name`. Raises RuntimeError.

        Both ends meet at the TCPStore at `port`, which is the sender's.
        """
        store = _torch.TCPStore(
            LOOPBACK,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self._patience.seconds),
        )
        prefixed = _torch.PrefixStore(name, store)
        return Pair(prefixed, rank, self._device, self._patience, self._gloo)
