"""Who may connect to the coordinator, how much each worker may say, and the end
of those who say too much.

It closes connections; what the membership makes of that is not its matter.
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
"""So much a worker may say before it is cut off, and so much more as time goes."""
PAGE = 4096
"""A message costs one, and one more for so many bytes; one that is refused, or a knock, COST."""
COST = 100


class RateLimits:
    """Allowances by identity; of hosts, by address, whether they are let in at all."""

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
        """Messages, by reason."""
        return self._refusals.refused

    def admits(self, key: bytes, address: str) -> bool | None:
        """For a gate, on its thread. In plain text nobody is asked."""
        if self._keys is None or key != self._keys.join:
            return False
        return None if time.monotonic() < self._disgraced.get(address, 0.0) else True

    def hears(self, identity: bytes, frame: zmq.Frame) -> bool:
        """Whether a message is to be read: not if its sender was cut off."""
        since = self._cut_off.get(identity)
        if since is None:
            return True
        if time.monotonic() - since > self._patience.ping:  # it came again
            self._hang_up(identity, frame)
        return False

    def charge(self, identity: bytes, size: int) -> None:
        """A worker has said something, of `size` bytes."""
        self._refusals.charge(identity, 1 + size // PAGE, "it said too much")

    def charge_knock(self, identity: bytes) -> None:
        """Somebody would like to join, or says that it is back."""
        self._refusals.charge(identity, COST, "it knocked too often")

    def refuse(self, identity: bytes, reason: Reason, what: str) -> None:
        """A worker's message was dropped."""
        self._refusals.refuse(identity, reason, what, cost=COST)

    def take_offenders(self) -> dict[bytes, str]:
        """Who has said too much since the last time, and why that is; each is to be cut off."""
        return self._refusals.take_offenders()

    def cut_off(self, identity: bytes, what: str, frame: zmq.Frame) -> None:
        """Close the connection by which `frame` has come, and hear its sender no more.

        For one patience its host gets no other connection.
        """
        if len(self._cut_off) < TOLD:
            self._tell(f"cut off a worker: {what}")
        self._hang_up(identity, frame)

    def forget_idle(self) -> None:
        """To be called now and then."""
        self._refusals.forget_idle()

    def _hang_up(self, identity: bytes, frame: zmq.Frame) -> None:
        now = time.monotonic()
        self._cut_off[identity] = now
        with suppress(zmq.ZMQError):  # in plain text nobody is asked at a gate
            self._disgraced[str(frame.get("Peer-Address"))] = now + self._patience.seconds
        hang_up(frame)
