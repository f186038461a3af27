"""The worker's socket to the coordinator, and the thread that owns it.

It passes bytes in both directions, and says when a coordinator is back after one was lost.
`conversation.py` knows what the bytes mean; `connection.py` joins the two.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

from washp2p.coordinator_link.absence import Absence
from washp2p.errors import (
    JoinRefusedError,
    RunStoppedError,
    UnreachableError,
    UsageError,
    WashError,
)
from washp2p.protocol.messages.control import MESSAGE_LIMIT
from washp2p.protocol.patience import FAREWELL_MS
from washp2p.sockets.curve_auth import present
from washp2p.sockets.heartbeats import close_dead_links

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from washp2p.sockets.keys import JoinKey

_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | _REFUSED
_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED
)


class ControlSocket:
    """A connection to `address` that survives the loss of the coordinator there.

    It is encrypted with `keys`, if given. Callbacks run on the socket's thread. `receive` gets each
    message. `returned` gives the messages to send to a coordinator that is back. `failed` gets the
    error that ends the connection.
    """

    unlike: bool = False
    """Whether the last handshake failed: one end has no keys, or keys do not match."""

    def __init__(
        self,
        address: str,
        keys: JoinKey | None,
        *,
        receive: Callable[[bytes], None],
        returned: Callable[[], Iterable[bytes]],
        failed: Callable[[WashError], None],
    ) -> None:
        self.absence = Absence(address, time.monotonic())
        """How long there has been no coordinator."""
        self._address = address
        self._keys = keys
        self._identity = b"w" + os.urandom(15)
        self._tried_at = 0.0
        self._greeted = False
        self._receive = receive
        self._returned = returned
        self._failed = failed
        self._closing = False
        self._sending = threading.Lock()
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
        """Send a message. Does not block; does nothing after `close`. Any thread may call this."""
        with self._sending:
            if not self._closing:
                self._outbox.send(data)

    def close(self) -> None:
        """Close the socket. Sent messages still leave. Harmless when called twice."""
        with self._sending:
            if self._closing:
                return
            self._closing = True
            self._outbox.send(b"")
        self._thread.join()
        self._outbox.close(linger=0)
        self._context.term()

    def answer(self, data: bytes) -> None:
        """Send a message from within a callback, on the socket's own thread."""
        with suppress(zmq.Again):  # ZeroMQ has given up the connection; what matters is said again
            self._dealer.send(data, zmq.NOBLOCK)

    def _serve(self, inner: zmq.Socket[bytes]) -> None:
        try:
            try:
                self._connect()
            except zmq.ZMQError as error:
                self._failed(UsageError(f"cannot connect to {self._address}: {error.strerror}"))
                while inner.recv():
                    pass
            else:
                self._relay(inner)
        except Exception as error:  # whatever it is, nobody must wait for this thread in vain
            self._failed(RunStoppedError(f"the control thread failed: {error!r}"))
            raise
        finally:
            self._let_go(FAREWELL_MS)
            inner.close(linger=0)

    def _connect(self) -> None:
        """Open a new socket under the same identity."""
        self._dealer = dealer = self._context.socket(zmq.DEALER)
        self._monitor = dealer.get_monitor_socket(_EVENTS)
        dealer.set(zmq.IDENTITY, self._identity)
        dealer.set(zmq.IPV6, "[" in self._address)
        dealer.set(zmq.MAXMSGSIZE, MESSAGE_LIMIT)
        close_dead_links(dealer, self.absence.patience)
        if self._keys is not None:
            present(dealer, self._keys.own, self._keys.coordinator)
        dealer.connect(self._address)

    def _let_go(self, linger: int) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close(linger=linger)

    def _relay(self, inner: zmq.Socket[bytes]) -> None:
        """Pass messages in both directions until the member closes."""
        while True:
            ping = round(1000 * self.absence.patience.ping)
            # In this order: the monitor tells of a connection before a message of it is there.
            sockets = [(socket, zmq.POLLIN) for socket in (inner, self._dealer, self._monitor)]
            ready = dict(zmq.zmq_poll(sockets, ping if self.absence.lasts else -1))
            if inner in ready:
                data = inner.recv()
                if not data:
                    return
                self.answer(data)
            if self._monitor in ready:  # a connection is noted before what comes over it
                self._heed(recv_monitor_message(self._monitor)["event"])
            elif self._dealer in ready:
                if not self.absence.lasts:
                    self.absence.heard(time.monotonic())
                self._receive(self._dealer.recv())
            if self.absence.lasts:
                self._wait_for_another()

    def _heed(self, event: int) -> None:
        """Handle a monitor `event`: the connection is made, refused or lost."""
        self.unlike |= bool(event & _FAILED)
        self._tried_at = time.monotonic()
        if event == _REFUSED and not self._greeted:
            self._failed(
                JoinRefusedError(
                    f"the coordinator at {self._address} does not know this join key; copy its "
                    "keys/join.key anew"
                )
            )
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._greeted, self.unlike = True, False
            if self.absence.end(time.monotonic()):
                for data in self._returned():
                    self.answer(data)
        elif event != zmq.EVENT_CONNECT_RETRIED:
            self.absence.begin(self._tried_at)

    def _wait_for_another(self) -> None:
        now = time.monotonic()
        problem = self.absence.problem(now)
        if problem is not None:
            self._failed(problem)
        if now - self._tried_at > self.absence.patience.seconds:  # ZeroMQ has given up
            self._tried_at = now
            self._let_go(0)
            self._connect()


def unanswered(
    address: str, wait: float, keys: JoinKey | None, *, unlike: bool
) -> UnreachableError:
    """Make the error for a coordinator that has not answered. Its text names a remedy."""
    if not unlike:
        remedy = "start one there (python -m coordinator --n N) or correct the address"
    elif keys is None:
        remedy = "somebody is there, and wants keys: give --keys (from Python, keys=)"
    else:
        remedy = "somebody is there, without keys or with others: give both the same --keys"
    return UnreachableError(f"no coordinator answered at {address} within {wait:g} s; {remedy}")
