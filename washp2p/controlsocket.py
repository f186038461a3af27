"""The control plane's socket of a worker, and the thread that owns it.

Bytes out, bytes in, and word when a coordinator is there again after one was lost. What the bytes
mean is `connection.py`'s.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from washp2p.errors import RunStoppedError, UsageError, WashError
from washp2p.patience import FAREWELL_MS, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class ControlSocket:
    """A connection to the coordinator at `address` that outlives it.

    The callbacks come on the socket's thread: `receive` with each message, `returned` for what a
    coordinator must hear that is there again, `failed` when there is no more hope.
    """

    patience: Patience
    """How long to wait for a coordinator; may be set anew."""

    def __init__(
        self,
        address: str,
        *,
        receive: Callable[[bytes], None],
        returned: Callable[[], Iterable[bytes]],
        failed: Callable[[WashError], None],
    ) -> None:
        self.patience = Patience()
        self._address = address
        self._receive = receive
        self._returned = returned
        self._failed = failed
        self._closing = False
        self._context = zmq.Context()
        self._context.set(zmq.BLOCKY, 0)  # no socket lingers unless it is told to
        inner = self._context.socket(zmq.PAIR)
        inner.bind("inproc://outbox")
        self._outbox = self._context.socket(zmq.PAIR)
        self._outbox.connect("inproc://outbox")
        self._thread = threading.Thread(
            target=self._serve, args=(inner,), name="washp2p control", daemon=True
        )
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Send a message; on one thread only. Does not block."""
        self._outbox.send(data)

    def close(self) -> None:
        """Let go; what was sent still leaves. Harmless when called twice."""
        if self._closing:
            return
        self._closing = True
        self._outbox.send(b"")
        self._thread.join()
        self._outbox.close(linger=0)
        self._context.term()

    def answer(self, data: bytes) -> None:
        """Send a message on the socket's own thread, from within a callback."""
        self._dealer.send(data)

    def _serve(self, inner: zmq.Socket[bytes]) -> None:
        self._dealer = dealer = self._context.socket(zmq.DEALER)
        dealer.set(zmq.IDENTITY, b"w" + os.urandom(15))
        dealer.set(zmq.IPV6, "[" in self._address)
        self.patience.watch(dealer)
        monitor = dealer.get_monitor_socket(_EVENTS)
        try:
            try:
                dealer.connect(self._address)
            except zmq.ZMQError as error:
                self._failed(UsageError(f"cannot connect to {self._address}: {error.strerror}"))
                while inner.recv():
                    pass
            else:
                self._relay(inner, dealer, monitor)
        except Exception as error:  # whatever it is, nobody must wait for this thread in vain
            self._failed(RunStoppedError(f"the control thread failed: {error!r}"))
            raise
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)
            inner.close(linger=0)
            dealer.close(linger=FAREWELL_MS)

    def _relay(
        self, inner: zmq.Socket[bytes], dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes]
    ) -> None:
        """Pass messages on in both directions until this member closes."""
        poller = zmq.Poller()
        for socket in (inner, dealer, monitor):
            poller.register(socket, zmq.POLLIN)
        lost_at: float | None = None
        while True:
            ready = dict(poller.poll(None if lost_at is None else round(1000 * self.patience.ping)))
            if inner in ready:
                data = inner.recv()
                if not data:
                    return
                dealer.send(data)
            if dealer in ready:
                self._receive(dealer.recv())
            elif monitor in ready:
                event = recv_monitor_message(monitor)["event"]
                if event == zmq.EVENT_DISCONNECTED:
                    lost_at = lost_at or time.monotonic()
                elif lost_at is not None:
                    lost_at = None
                    for data in self._returned():
                        dealer.send(data)
            if lost_at is not None and time.monotonic() - lost_at > self.patience.away:
                self._failed(
                    RunStoppedError(
                        f"the coordinator at {self._address} has been gone for "
                        f"{self.patience.away:g} s; what this member has written is kept: start "
                        "it again (python -m coordinator --resume RUN) and workers with it"
                    )
                )
