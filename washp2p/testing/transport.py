"""The data plane of a simulated process."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from washp2p.transports.base import Message, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.testing.network import Network
    from washp2p.testing.sessions import Session
    from washp2p.transports.base import Buffers

    Action = Callable[[], None]


class SimulatedTransport(Wire):
    """The data plane of the process at `place`, listening at `endpoint`. `arrived` gets each
    message.
    """

    def __init__(
        self,
        network: Network,
        place: str,
        endpoint: str,
        arrived: Callable[[Message], None],
        acts: Action = lambda: None,
    ) -> None:
        """`acts` is called before each message is sent."""
        super().__init__()
        self._acts = acts
        self.endpoint = endpoint
        self._place = place
        self._network = network
        self._sessions: dict[MemberId, Session] = {}
        self._endpoints: dict[MemberId, str] = {}
        self._made_again: list[MemberId] = []
        self._known_up: set[MemberId] = set()
        self.held: deque[Message] = deque()
        """What has arrived and waits for `receive`."""
        network.listen(endpoint, place, arrived)

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        self.disconnect(peer)
        self._endpoints[peer] = endpoint

        def made(again: bool) -> None:
            if again:
                self._made_again.append(peer)

        self._sessions[peer] = self._network.open(self._place, endpoint, made)

    def disconnect(self, peer: MemberId) -> None:
        session = self._sessions.pop(peer, None)
        if session is not None:
            session.close()

    def cut(self, peer: MemberId, key: bytes) -> None:
        """Close the way to the peer."""
        self.disconnect(peer)

    def broken(self, peer: MemberId) -> bool:
        """Whether the way to the peer was broken at the last call of `mended`."""
        return peer not in self._known_up

    def mended(self) -> list[MemberId]:
        """Peers to whom the way was broken, and is open again."""
        mended, self._made_again = self._made_again, []
        self._known_up = {peer for peer, session in self._sessions.items() if session.up}
        return [peer for peer in mended if peer in self._sessions]

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message of `held`. Never waits."""
        return self.held.popleft() if self.held else None

    def interrupt(self) -> None:
        """Do nothing: nobody waits in `receive`."""

    def close(self, linger: float = 0.0) -> None:
        """Do nothing: connections end with the process."""

    def _put(self, peer: MemberId, header: bytes, buffers: Buffers) -> tuple[str, int] | None:
        session = self._sessions.get(peer)
        if session is None:
            return None
        self._acts()
        payload = b"".join(buffers)  # type: ignore[arg-type]  # which are on the host
        message = Message(memoryview(header), memoryview(payload))
        if not session.send(
            self._place, partial(self._network.deliver, self._endpoints[peer], message)
        ):
            return None
        return "memory", len(payload)
