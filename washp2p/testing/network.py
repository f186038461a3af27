"""A simulated network: messages take time, stay in order on each link, and get lost with a process.

Links differ in speed, so messages of different senders arrive in any order.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from washp2p.transports.base import Message, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from washp2p.protocol.roster import MemberId
    from washp2p.testing.events import Events
    from washp2p.transports.base import Buffers

FASTEST, SLOWEST = 1e-4, 2e-2
"""Mean seconds that a message takes, of the fastest and of the slowest link."""


class Network:
    """Carries data among named places. Each ordered pair of places is a link."""

    def __init__(self, events: Events, random: Random) -> None:
        self._events = events
        self._random = random
        self._speeds: dict[tuple[str, str], float] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._places: set[str] = set()
        self._receivers: dict[str, Callable[[Message], None]] = {}

    def add(self, place: str, receive: Callable[[Message], None] | None = None) -> None:
        """Let messages to `place` arrive from now on. `receive` gets those of `bring`."""
        self._places.add(place)
        if receive is not None:
            self._receivers[place] = receive

    def remove(self, place: str) -> None:
        """Let no message to `place` arrive any more: its process is gone."""
        self._places.discard(place)

    def has(self, place: str) -> bool:
        """Whether messages to `place` arrive."""
        return place in self._places

    def carry(self, source: str, target: str, arrive: Callable[[], None]) -> None:
        """Call `arrive` once a message from `source` has reached `target`, in order."""
        link = source, target
        if link not in self._speeds:
            self._speeds[link] = FASTEST * (SLOWEST / FASTEST) ** self._random.random()
        takes = self._random.expovariate(1 / self._speeds[link])
        when = max(self._last.get(link, 0.0), self._events.now + takes)
        self._last[link] = self._events.at(when, lambda: arrive() if self.has(target) else None)

    def bring(self, source: str, target: str, message: Message) -> None:
        """Bring `message` to the process at `target`."""
        self.carry(source, target, lambda: self._receivers[target](message))


class SimulatedTransport(Wire):
    """One member's end of the network, at the place `endpoint`. `arrived` gets each message."""

    def __init__(self, network: Network, endpoint: str, arrived: Callable[[Message], None]) -> None:
        super().__init__()
        self.endpoint = endpoint
        self._network = network
        self._peers: dict[MemberId, str] = {}
        self.held: deque[Message] = deque()
        """What has arrived and waits for `receive`."""
        network.add(endpoint, arrived)

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        self._peers[peer] = endpoint

    def disconnect(self, peer: MemberId) -> None:
        self._peers.pop(peer, None)

    def cut(self, peer: MemberId, key: bytes) -> None:
        """Close the way to the peer."""
        self.disconnect(peer)

    def broken(self, peer: MemberId) -> bool:
        """Whether the peer's process is gone."""
        return peer not in self._peers or not self._network.has(self._peers[peer])

    def mended(self) -> list[MemberId]:
        """An empty list: links break only with a process."""
        return []

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message of `held`. Never waits."""
        return self.held.popleft() if self.held else None

    def interrupt(self) -> None:
        """Do nothing: nobody waits in `receive`."""

    def close(self, linger: float = 0.0) -> None:
        self._network.remove(self.endpoint)

    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        if peer not in self._peers:
            return None
        payload = b"".join(buffers)  # type: ignore[arg-type]  # which are on the host
        message = Message(memoryview(header), memoryview(payload))
        self._network.bring(self.endpoint, self._peers[peer], message)
        return "memory", len(payload)
