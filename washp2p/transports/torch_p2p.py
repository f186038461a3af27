"""`torch://127.0.0.1:PORT/DEVICE`: `torch.distributed` point to point, by NCCL or by gloo.

NCCL carries values on GPUs; gloo carries values on the CPU and all else. Each link is a pair of its
own (module `pair`). So a member that ends breaks no links but its own, and a new roster needs no
rebuilding. A message is announced before its payload. So the receiver takes messages in the order
of sending, and nobody waits for what will not come. Threads do all waiting, one at each end of a
link, and every wait has a limit.

A member sends at most one payload from its GPU at a time, and receives at most one at a time. So
every payload that is being received is also being sent, and no members wait in a circle.
"""

from __future__ import annotations

import atexit
import logging
import re
import socket
import time
from contextlib import suppress
from functools import partial
from itertools import count
from threading import Condition, Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from washp2p.errors import UsageError
from washp2p.protocol.patience import Patience
from washp2p.transports.backlog import Backlog
from washp2p.transports.base import Message, Wire
from washp2p.transports.link import ANNOUNCEMENT, DEVICE, HOST, NOTHING, Link, Outgoing
from washp2p.transports.pair import LOOPBACK, Meeting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffers, Credentials, Payload
    from washp2p.transports.pair import Pair

_ADDRESS = re.compile(r"torch://127\.0\.0\.1:(?P<port>\d{1,5}|\*)/(?P<device>[\w:-]{1,80})")
CALLERS = 256
"""The most connections from peers that one member accepts."""

_log = logging.getLogger("washp2p")


class TorchTransport(Wire):
    """Messages over `torch.distributed`. Payloads may be tensors on the device of the address.

    Tensors that are sent belong to the transport. They arrive as one tensor (uint8) on the
    receiver's device.
    """

    def __init__(
        self,
        bind: str,
        patience: Patience | None = None,
        credentials: Credentials | None = None,
        near: str = "",
        largest: int = -1,
    ) -> None:
        """Listen at `torch://127.0.0.1:PORT/DEVICE`; port `*` takes a free one.

        DEVICE is `cpu` or, for instance, `cuda:0`. Raises UsageError if it cannot listen, or if
        connections have to be encrypted.
        """
        if credentials is not None:
            raise UsageError(f"{bind}: torch.distributed cannot encrypt; use tcp or ipc with keys")
        super().__init__()
        port, name = _split(bind)
        self._device, self.device = _device(name)
        try:
            self._server = socket.create_server((LOOPBACK, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen at {bind}: {error.strerror}; choose another port"
            ) from None
        self.endpoint = f"torch://{LOOPBACK}:{self._server.getsockname()[1]}/{self.device}"
        self._wire = "gloo" if self._device.type == "cpu" else "nccl"
        self._largest = largest
        self._patience = patience or Patience()
        self._to_send, self._to_receive = Lock(), Lock()
        self.on_arrival: Callable[[], None] = lambda: None
        """A callback: any thread calls it after a message has arrived."""
        self._links: dict[MemberId, Link] = {}
        self._old: list[Link] = []
        self._numbers = count()
        self._backlog = Backlog(max(0, largest))
        self._arrived = Condition()
        self._interrupted = False
        self._closing = Event()
        self._meeting = Meeting(self._device, self._patience)
        self._callers: set[Thread] = set()
        self._acceptor = Thread(target=self._accept, name="washp2p torch door", daemon=True)
        self._acceptor.start()
        _open.add(self)

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        port, _ = _split(endpoint)
        self.disconnect(peer)
        self._links[peer] = Link(partial(self._call, port), self._patience, self._to_send)

    def disconnect(self, peer: MemberId) -> None:
        with self._sending:
            link = self._links.pop(peer, None)
        if link is not None:
            link.let_go()
            self._old = [old for old in self._old if old.alive] + [link]

    def cut(self, peer: MemberId, key: bytes) -> None:
        """Stop sending to the peer. It may still send: processes on this machine are trusted."""
        self.disconnect(peer)

    def broken(self, peer: MemberId) -> bool:
        link = self._links.get(peer)
        return link is None or not link.up

    def mended(self) -> list[MemberId]:
        return [peer for peer, link in self._links.items() if link.has_mended()]

    def down_for(self, peer: MemberId) -> float:
        """Seconds since the connection to `peer` was up, or since the first try; 0 if it is up."""
        link = self._links.get(peer)
        return 0.0 if link is None else link.down_for

    def direct(self, peer: MemberId) -> bool:
        return peer in self._links

    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        link = self._links.get(peer)
        if link is None:
            return None
        values = [b.view(torch.uint8) for b in buffers if isinstance(b, torch.Tensor)]
        payload = values or bytearray().join(buffers)  # type: ignore[arg-type]
        size = sum(map(len, values)) if values else len(payload)
        if not link.put(Outgoing(header, payload, size)):
            return None
        return self._wire if values else "gloo", size

    def receive(self, timeout: float | None = None) -> Message | None:
        with self._arrived:
            self._arrived.wait_for(lambda: self._backlog or self._interrupted, timeout)
            if self._backlog:
                return self._backlog.pop()
            self._interrupted = False
            return None

    def interrupt(self) -> None:
        with self._arrived:
            self._interrupted = True
            self._arrived.notify()

    def close(self, linger: float = 0.0) -> None:
        """Close everything. Waits for threads, at most `linger` seconds and one patience."""
        if self._closing.is_set():
            return
        self._closing.set()
        links = [*self._links.values(), *self._old]
        until = time.monotonic() + linger
        for link in links:
            link.finish()
        for link in links:
            link.join(max(0.0, until - time.monotonic()))
            link.let_go()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        until = time.monotonic() + self._patience.seconds
        self._acceptor.join()
        for link in links:
            link.join(max(0.0, until - time.monotonic()))
        for caller in list(self._callers):
            caller.join(max(0.0, until - time.monotonic()))

    def _call(self, port: int) -> Pair:
        """Connect to the peer that listens at `port`, and return this end of a pair with it.

        Blocks. Raises OSError or RuntimeError.
        """
        name = f"{next(self._numbers)}"
        address = LOOPBACK, port
        with socket.create_connection(address, timeout=self._patience.dead) as door:
            door.sendall(f"{self._meeting.port} {name}\n".encode())
        return self._meeting.pair(self._meeting.port, name, 1)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                door, _ = self._server.accept()
            except OSError:  # closed, or too many files are open
                self._closing.wait(self._patience.ping)
                continue
            thread = Thread(
                target=self._serve, args=(door,), name="washp2p torch receiver", daemon=True
            )
            try:
                if len(self._callers) < CALLERS:
                    thread.start()
                    continue
            except RuntimeError as error:  # no thread is to be had
                _log.warning("nobody can be let in at %s: %s", self.endpoint, error)
            door.close()

    def _serve(self, door: socket.socket) -> None:
        """Receive one caller's messages until its connection ends."""
        self._callers.add(current_thread())
        try:
            with door:
                door.settimeout(self._patience.dead)
                with door.makefile() as words:
                    port, _, name = words.readline(32).strip().partition(" ")
            with socket.create_connection((LOOPBACK, int(port)), timeout=self._patience.dead):
                pass  # somebody is there, or the store would complain to the user
            self._take_from(self._meeting.pair(int(port), name, 0))
        except Exception as error:  # whatever it was, only this link ends
            _log.debug("a link to %s has ended: %r", self.endpoint, error)
        finally:
            self._callers.discard(current_thread())

    def _take_from(self, pair: Pair) -> None:
        origin = object()
        room = torch.empty(ANNOUNCEMENT.size, dtype=torch.uint8)
        while not self._closing.is_set():
            pair.recv(room, idle=True)
            kind, length, size, header = ANNOUNCEMENT.unpack(room.numpy().data)
            if kind == NOTHING:
                continue
            if kind not in {HOST, DEVICE} or -1 < self._largest < size:
                raise ValueError(f"a message of {size} bytes; expected at most {self._largest}")
            payload: Payload
            if kind == DEVICE:
                with self._to_receive:
                    payload = pair.recv_values(size)
            else:
                payload = pair.recv(torch.empty(size, dtype=torch.uint8)).numpy().data
            message = Message(memoryview(header[:length]), payload)
            with self._arrived:
                if not self._backlog.put(origin, message):
                    raise ValueError("it leaves too much unread")
                self._arrived.notify()
            self.on_arrival()


_open: WeakSet[TorchTransport] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close all transports: a thread inside torch would abort the process when Python ends."""
    for transport in list(_open):
        transport.close()


def _split(address: str) -> tuple[int, str]:
    """The port (0 for `*`) and the device of an address. Raises UsageError."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(
            f"{address!r:.100} is not an address of this transport: torch://{LOOPBACK}:PORT/DEVICE"
        )
    return int(match["port"].replace("*", "0")), match["device"]


def _device(name: str) -> tuple[torch.device, str]:
    """The device called `name` here, and its name for peers on this machine. Raises UsageError."""
    try:
        device = torch.device(name)
        if device.type == "cpu":
            return device, "cpu"
        return device, f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"there is no {name:.40}: {str(error).splitlines()[0]}; expected cpu, cuda:0, ..."
        ) from None
