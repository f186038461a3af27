"""A one-way connection to a peer over `torch.distributed`, and the thread that sends on it.

A message is an announcement of fixed length, followed by the payload if there is any.
"""

from __future__ import annotations

import logging
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock

    from washp2p.protocol.patience import Patience
    from washp2p.transports.pair import Pair

QUEUED = 10_000
"""Messages kept for a peer that does not take them; more are lost."""

NOTHING, HOST, DEVICE = range(3)
"""Where an announced payload is. NOTHING: no message follows, the link only shows that it holds."""

ANNOUNCEMENT = struct.Struct("<BBQ255s")
"""Its fields: where the payload is, the header's length, the payload's length, the header."""

_log = logging.getLogger("washp2p")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way: a payload on the host, or vectors (uint8) on the device."""

    header: bytes
    payload: bytearray | list[torch.Tensor]
    size: int


class Link:
    """A one-way connection. It is made again whenever it breaks, until it is let go."""

    def __init__(self, call: Callable[[], Pair], patience: Patience, turn: Lock) -> None:
        """The callback `call` connects to the peer and returns a Pair. It may block, and raise.

        Payloads on the device are sent while this connection holds the lock `turn`.
        """
        self._call = call
        self._patience = patience
        self._turn = turn
        self._queue: SimpleQueue[Outgoing | None] = SimpleQueue()
        self._gone = Event()
        self.up = False
        """Whether the peer has been reached and the connection has not broken since."""
        self._held = time.monotonic()
        self._broken = False
        self._mended = False
        self._thread = Thread(target=self._run, name="washp2p torch sender", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    @property
    def down_for(self) -> float:
        """Seconds since the connection was last up, or since the first try; 0 while it is up."""
        return 0.0 if self.up else time.monotonic() - self._held

    def has_mended(self) -> bool:
        """Whether the connection was broken and works again. True once for each time it breaks."""
        mended, self._mended = self._mended, False
        return mended

    def put(self, message: Outgoing) -> bool:
        """Queue a message. Does not block.

        Returns False if the connection is broken or QUEUED messages wait. Then the message is lost.
        """
        if self._broken or self._queue.qsize() >= QUEUED:
            return False
        self._queue.put(message)
        return True

    def let_go(self) -> None:
        """End at once; queued messages are lost."""
        self._gone.set()
        self.finish()

    def finish(self) -> None:
        """End once the queued messages have been sent."""
        self._queue.put(None)

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the thread to end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._gone.is_set():
            try:
                self._serve(self._call())
            except Exception as error:  # whatever it was, the link is made anew
                _log.debug("a link has ended: %r", error)
                if self.up:
                    self._held = time.monotonic()
                    self.up, self._broken = False, True
                    self._empty()
                self._gone.wait(self._patience.ping)

    def _empty(self) -> None:
        with suppress(Empty):
            while True:
                if self._queue.get_nowait() is None:
                    self._gone.set()

    def _serve(self, pair: Pair) -> None:
        """Send queued messages until the connection breaks or has to end."""
        self.up = True
        if self._broken:
            self._empty()
            self._broken, self._mended = False, True
        while not self._gone.is_set():
            try:
                message = self._queue.get(timeout=self._patience.ping)
            except Empty:
                pair.send(_announcement(NOTHING, b"", 0))
                continue
            if message is None:
                self._gone.set()
                return
            payload = message.payload
            if isinstance(payload, bytearray):
                pair.send(_announcement(HOST, message.header, message.size))
                if payload:
                    pair.send(torch.frombuffer(payload, dtype=torch.uint8))
            else:
                while not self._turn.acquire(timeout=self._patience.ping):
                    pair.send(_announcement(NOTHING, b"", 0))
                try:
                    pair.send(_announcement(DEVICE, message.header, message.size))
                    pair.send_values(payload)
                finally:
                    self._turn.release()


def _announcement(payload: int, header: bytes, size: int) -> torch.Tensor:
    data = bytearray(ANNOUNCEMENT.size)
    ANNOUNCEMENT.pack_into(data, 0, payload, len(header), size, header)
    return torch.frombuffer(data, dtype=torch.uint8)
