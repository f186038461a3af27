"""Who may connect to the coordinator, and how much each worker may send.

RateLimits closes connections. `machine/membership.py` decides what follows for the run.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import zmq

from washp2p.protocol.refusals import TOLD, Reason, Refusals
from washp2p.sockets.curve_auth import hang_up

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from washp2p.protocol.patience import Patience
    from washp2p.sockets.keys import CoordinatorKeys

MESSAGES, MESSAGES_A_SECOND = 10_000, 1000
"""The allowance that a worker may use up before it is cut off, and its refill per second."""
PAGE = 4096
"""A message costs 1, and 1 more for each PAGE bytes.

A refused message, or one for which `charge_knock` is called, costs COST in addition.
"""
COST = 100


class RateLimits:
    """An allowance for each worker, and a list of hosts that may not connect for a while.

    `tell` is a callback. It gets a line about the first refused messages and cut-off workers.
    """

    def __init__(
        self, keys: CoordinatorKeys | None, patience: Patience, tell: Callable[[str], None]
    ) -> None:
        self._keys = keys
        self._patience = patience
        self._tell = tell
        self._refusals: Refusals[bytes] = Refusals(
            rate=MESSAGES_A_SECOND, burst=MESSAGES, tell=tell, clock=time.monotonic
        )
        self._cut_off: dict[bytes, float] = {}
        self._disgraced: dict[str, float] = {}

    @property
    def refused(self) -> Counter[Reason]:
        """The number of refused messages, by reason."""
        return self._refusals.refused

    def admits(self, key: bytes, address: str) -> bool | None:
        """Whether a worker with this `key` may connect; None while its host has to wait.

        The authenticator calls it on its own thread, for encrypted connections only.
        """
        if self._keys is None or key != self._keys.join:
            return False
        return None if time.monotonic() < self._disgraced.get(address, 0.0) else True

    def hears(self, identity: bytes, frame: zmq.Frame) -> bool:
        """Whether to read a message of `identity`: False if that worker was cut off.

        If the worker has connected again, its connection is closed again.
        """
        since = self._cut_off.get(identity)
        if since is None:
            return True
        if time.monotonic() - since > self._patience.ping:  # it came again
            self._hang_up(identity, frame)
        return False

    def charge(self, identity: bytes, size: int) -> None:
        """Charge a worker for a message of `size` bytes."""
        self._refusals.charge(identity, 1 + size // PAGE, "it said too much")

    def charge_knock(self, identity: bytes) -> None:
        """Charge a worker for asking to join or for a view, or saying that it is back."""
        self._refusals.charge(identity, COST, "it knocked too often")

    def refuse(self, identity: bytes, reason: Reason, what: str) -> None:
        """Count a refused message of a worker, and charge the worker for it."""
        self._refusals.refuse(identity, reason, what, cost=COST)

    def take_offenders(self) -> dict[bytes, str]:
        """Workers that have used up their allowance since the last call, each with the reason."""
        return self._refusals.take_offenders()

    def cut_off(self, identity: bytes, what: str, frame: zmq.Frame) -> None:
        """Close the connection on which `frame` came, and ignore its sender for good.

        If links are encrypted, also refuse new connections from the sender's host for `--patience`
        seconds.
        """
        if len(self._cut_off) < TOLD:
            self._tell(f"cut off a worker: {what}")
        self._hang_up(identity, frame)

    def forget_idle(self) -> None:
        """Forget workers whose allowance is whole again. Call it regularly."""
        self._refusals.forget_idle()

    def _hang_up(self, identity: bytes, frame: zmq.Frame) -> None:
        now = time.monotonic()
        self._cut_off[identity] = now
        with suppress(zmq.ZMQError):  # in plain text nobody is asked at a gate
            self._disgraced[str(frame.get("Peer-Address"))] = now + self._patience.seconds
        hang_up(frame)
