"""Sends a member's rounds: at once, or on another thread while their values leave the device."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from washp2p.protocol.messages.frames import headers

if TYPE_CHECKING:
    from concurrent.futures import Future

    from washp2p.rounds.round_state import Messages
    from washp2p.transports.base import Transport

AHEAD = 2
"""Rounds whose values may still be on their way from the device when the next one is gathered."""


class DeviceOutbox:
    """Sends over `transport`, in the order of posting. Belongs to the training thread."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sender: ThreadPoolExecutor | None = None
        self._unsent: deque[Future[None]] = deque()

    def post(self, messages: Messages) -> None:
        """Send a leg's messages once its marks are done: the values have left the device.

        Does not block, unless the device is more than AHEAD rounds behind.
        """
        while self._unsent and (self._unsent[0].done() or len(self._unsent) > AHEAD):
            self._unsent.popleft().result()
        if not self._unsent and all(mark.done() for mark in messages.marks):
            self._send(messages)
        else:
            self._sender = self._sender or ThreadPoolExecutor(1, "washp2p sender")
            self._unsent.append(self._sender.submit(self._send, messages))

    def flush(self) -> None:
        """Block until everything posted has left the device and is sent."""
        while self._unsent:
            self._unsent.popleft().result()

    def close(self) -> None:
        """Stop sending. Harmless when called twice."""
        if self._sender is not None:
            self._sender.shutdown(cancel_futures=True)

    def _send(self, messages: Messages) -> None:
        for mark in messages.marks:
            mark.wait()
        for peer, planned, buffers in messages.parts:
            header = headers.encode(messages.header.to(peer))
            self._transport.send(peer, messages.kind, header, buffers, expected=planned)
