"""Decides who may connect to sockets of a ZeroMQ context (ZAP, RFC 27), and closes connections.

Only CURVE connections are let in. A public key identifies a peer, which has proved that it holds
the secret key. The caller decides whom to admit.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.protocol.patience import Patience
    from washp2p.sockets.keys import KeyPair

_ZAP = "inproc://zeromq.zap.01"
_DOMAIN = b"washp2p"
_LOOK_MS = 20
"""How often, in milliseconds, to check whether a waiting peer may be admitted now."""
_WAITING = 100
"""Peers of one address that may wait to become known."""


class Authenticator:
    """Answers connection requests for all sockets of `context` to which `guard` was applied.

    `admits` takes a public key and the IP address it comes from. It returns True, False, or None
    for "not yet". After None the peer waits until it is admitted or its handshake times out. The
    authenticator's thread calls `admits`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        admits: Callable[[bytes, str], bool | None],
        patience: Patience,
    ) -> None:
        self._admits = admits
        self._patience = patience.dead
        self._waiting: dict[bytes, tuple[list[bytes], float]] = {}
        requests = context.socket(zmq.ROUTER)
        requests.bind(_ZAP)
        self._thread = threading.Thread(
            target=self._serve, args=(requests,), name="washp2p gate", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Wait for the authenticator's thread to end. Call it while the context is being
        terminated.
        """
        self._thread.join()

    def _serve(self, requests: zmq.Socket[bytes]) -> None:
        try:
            while True:
                if requests.poll(_LOOK_MS if self._waiting else None):
                    self._take(requests.recv_multipart())
                now = time.monotonic()
                for origin, (request, since) in list(self._waiting.items()):
                    verdict = self._admits(request[-1], request[5].decode())
                    if verdict is not None:
                        requests.send_multipart(_reply(request, verdict))
                    if verdict is not None or now - since > self._patience:
                        del self._waiting[origin]
        except zmq.ContextTerminated:
            pass
        finally:
            requests.close(linger=0)

    def _take(self, request: list[bytes]) -> None:
        """Let a request wait, unless too many requests from its address wait already.

        The parts of a request are: origin, an empty part, version, id, domain, address, identity,
        CURVE, key.
        """
        beside = sum(other[5] == request[5] for other, _ in self._waiting.values())
        if beside < _WAITING:  # else it has to knock again
            self._waiting[request[0]] = (request, time.monotonic())


def guard(socket: zmq.Socket[Any], own: KeyPair) -> None:
    """Let only admitted peers connect to a socket. Call it before `bind`."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, own.secret)
    socket.set(zmq.ZAP_DOMAIN, _DOMAIN)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a gate nobody passes


def present(socket: zmq.Socket[Any], own: KeyPair, server: bytes) -> None:
    """Let a socket connect with the key pair `own`, and only to the holder of the public key
    `server`. Call it before `connect`.
    """
    socket.set(zmq.CURVE_SERVERKEY, server)
    socket.set(zmq.CURVE_PUBLICKEY, own.public)
    socket.set(zmq.CURVE_SECRETKEY, own.secret)


def hang_up(frame: zmq.Frame) -> None:
    """Close the connection on which a frame has just come.

    Messages read before still arrive. If that connection has ended and another one has its file
    descriptor now, the other one is closed, and its peer connects again.
    """
    with (
        suppress(OSError, zmq.ZMQError),
        socket.socket(fileno=os.dup(frame.get(zmq.SRCFD))) as connection,
    ):
        connection.shutdown(socket.SHUT_RDWR)


def _reply(request: list[bytes], verdict: bool) -> list[bytes]:
    origin, empty, version, number, *_, key = request
    code, text = (b"200", b"OK") if verdict else (b"400", b"unknown key")
    return [origin, empty, version, number, code, text, key.hex().encode(), b""]
