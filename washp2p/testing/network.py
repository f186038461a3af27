"""A simulated network: messages take time, connections keep them in order, paths are cut and heal.

Connections differ in speed, so messages of different senders arrive in any order. A connection
breaks when its path is cut, or the process at one end is stopped, for longer than a heartbeat may
be late, and as soon as a process ends. It is made again when it can be. What was under way is lost.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from washp2p.transports.base import Message, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.testing.events import Events
    from washp2p.transports.base import Buffers

    Action = Callable[[], None]

FASTEST, SLOWEST = 1e-4, 2e-2
"""Mean seconds that a message takes, of the fastest and of the slowest connection."""


class Network:
    """Carries data among named places, at each of which a process runs.

    Heartbeats are as `patience` says.
    """

    def __init__(self, events: Events, random: Random, patience: Patience) -> None:
        self.events = events
        self.random = random
        self.patience = patience
        self._stopped: dict[str, deque[Action]] = {}
        self._places: set[str] = set()
        self._gone: set[str] = set()
        self._cut: set[tuple[str, str]] = set()
        self._sessions: list[Session] = []
        self._listeners: dict[str, tuple[str, Callable[[Message], None]]] = {}

    def add(self, place: str) -> None:
        """A process begins at `place`."""
        self._places.add(place)

    def listen(self, endpoint: str, place: str, receive: Callable[[Message], None]) -> None:
        """Let `receive` get messages sent to `endpoint`, which the process at `place` has."""
        self._listeners[endpoint] = place, receive

    def listener(self, endpoint: str) -> tuple[str, Callable[[Message], None]]:
        """The place of an endpoint, and what gets its messages."""
        return self._listeners[endpoint]

    def remove(self, place: str, *, for_good: bool = True) -> None:
        """The process at `place` ends: its kernel closes its connections."""
        self._places.discard(place)
        self._stopped.pop(place, None)
        if for_good:
            self._gone.add(place)
        for session in self._of(place):
            session.ended_at(place)
        self._sessions = [s for s in self._sessions if place != s.opener and not s.closed]

    def has(self, place: str) -> bool:
        """Whether a process runs at `place`, or is stopped there."""
        return place in self._places

    def comes_back(self, place: str) -> bool:
        """Whether there is, or may be again, a process at `place`."""
        return place not in self._gone

    def stop(self, place: str) -> None:
        """Let nothing happen at `place` until `go_on`, as if its process got SIGSTOP."""
        if place in self._places and place not in self._stopped:
            self._stopped[place] = deque()
            for session in self._of(place):
                session.hindered(session.other(place))

    def go_on(self, place: str) -> None:
        """Let the process at `place` go on, with all that has come meanwhile."""
        waiting = self._stopped.pop(place, None)
        if waiting is None:
            return
        for session in self._of(place):
            session.freed()
        while waiting and self.has(place) and place not in self._stopped:
            waiting.popleft()()

    def cut(self, source: str, target: str) -> None:
        """Let nothing from `source` reach `target` until `heal`."""
        self._cut.add((source, target))
        for session in self._of(source):
            if session.other(source) == target:
                session.hindered(source)
                session.hindered(target)

    def heal(self, source: str, target: str) -> None:
        """End a cut."""
        self._cut.discard((source, target))
        for session in self._of(source):
            if session.other(source) == target:
                session.freed()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing from `source` reaches `target`."""
        return (source, target) in self._cut

    def is_stopped(self, place: str) -> bool:
        """Whether the process at `place` is stopped."""
        return place in self._stopped

    def act(self, place: str, action: Action) -> None:
        """Let the process at `place` do something: now, or when it goes on; never if it has
        ended.
        """
        if place in self._stopped:
            self._stopped[place].append(action)
        elif place in self._places:
            action()

    def open(
        self,
        opener: str,
        server: str,
        made: Callable[[bool], None],
        broke: Callable[[str], None] = lambda _: None,
    ) -> Session:
        """Open a connection from one place to another."""
        session = Session(self, opener, server, made, broke)
        self._sessions.append(session)
        return session

    def _of(self, place: str) -> list[Session]:
        return [s for s in self._sessions if place in {s.opener, s.server} and not s.closed]


class Session:
    """A connection that the process at `opener` keeps to `server`.

    `made` is called each time it works, and told whether it was broken before. `broke` is called
    with the place of a process that notices that it is broken.
    """

    def __init__(
        self,
        network: Network,
        opener: str,
        server: str,
        made: Callable[[bool], None],
        broke: Callable[[str], None],
    ) -> None:
        self.opener, self.server = opener, server
        self.closed = False
        """Whether the opener has given it up."""
        self.was_broken = False
        """Whether the opener knows it as broken, and not made again."""
        self._network = network
        self._made, self._broke = made, broke
        self._speed = FASTEST * (SLOWEST / FASTEST) ** network.random.random()
        self._last = {opener: 0.0, server: 0.0}
        self._open = {opener: False, server: False}
        self._stuck: dict[str, deque[Action]] = {opener: deque(), server: deque()}
        self._unsent: list[Action] = []
        self._life = 0
        self._whole = False
        self._trouble = 0
        self._attempt()

    @property
    def up(self) -> bool:
        """Whether it works, as far as the opener knows."""
        return self._open[self.opener]

    def other(self, place: str) -> str:
        """The place at the other end."""
        return self.server if place == self.opener else self.opener

    def is_open(self, place: str) -> bool:
        """Whether the process at `place` can send by it, as far as it knows."""
        return self._open[place]

    def send(self, source: str, arrive: Action) -> bool:
        """Let `arrive` be called once a message from `source` has reached the other end.

        Returns False if the connection is broken, as the process at `source` knows. Before it is
        made for the first time, messages wait.
        """
        if self._open[source]:
            if self._whole:
                self._carry(source, arrive)
            elif source == self.opener:
                self._unsent.append(arrive)
            return True
        if source == self.opener and not self.was_broken and not self.closed:
            self._unsent.append(arrive)
            return True
        return False

    def close(self) -> None:
        """Give the connection up. What waits is lost; what is under way arrives."""
        self.closed = True
        self._unsent.clear()
        self._open[self.opener] = False
        if self._whole:
            self._carry(self.opener, partial(self._break_at, self.server))

    def hindered(self, place: str) -> None:
        """Heartbeats from the other end do not reach `place` any more."""
        network, trouble = self._network, self._trouble
        late = network.patience.dead + network.random.uniform(0.0, network.patience.ping)

        def notice() -> None:
            if trouble == self._trouble:
                self._break_at(place)

        network.events.after(late, lambda: network.act(place, notice))

    def freed(self) -> None:
        """What hindered it is over; it breaks no more unless it is broken."""
        if self._hindrance():
            return
        self._trouble += 1
        network = self._network
        network.events.after(0.0, self._deliver_stuck)
        for place, is_open in self._open.items():
            if is_open and not self._whole:  # the next heartbeat is answered by a reset
                network.act(place, partial(self._break_at, place))

    def ended_at(self, place: str) -> None:
        """The process at `place` has ended."""
        self._open[place] = False
        other = self.other(place)
        if self._network.has(other):
            self.hindered(other)
            if self._whole:
                self._carry(place, partial(self._break_at, other))

    def _hindrance(self) -> bool:
        network, a, b = self._network, self.opener, self.server
        cut = network.is_cut(a, b) or network.is_cut(b, a)
        return cut or network.is_stopped(a) or network.is_stopped(b)

    def _carry(self, source: str, arrive: Action) -> None:
        takes = self._network.random.expovariate(1 / self._speed)
        events, life = self._network.events, self._life
        when = max(self._last[source], events.now + takes)
        self._last[source] = events.at(when, lambda: self._arrive(source, arrive, life))

    def _arrive(self, source: str, arrive: Action, life: int) -> None:
        target = self.other(source)
        if not self._whole or life != self._life:
            return
        if self._stuck[source] or self._network.is_cut(source, target):
            self._stuck[source].append(arrive)
        else:
            self._network.act(target, arrive)

    def _deliver_stuck(self) -> None:
        for source, stuck in self._stuck.items():
            target = self.other(source)
            while stuck and not self._network.is_cut(source, target):
                self._network.act(target, stuck.popleft())

    def _break_at(self, place: str) -> None:
        """The process at `place` notices that the connection is broken."""
        if self._whole:
            self._whole = False
            for stuck in self._stuck.values():
                stuck.clear()
        if not self._open[place]:
            return
        self._open[place] = False
        other, network = self.other(place), self._network
        if self._open[other] and not network.is_cut(place, other):
            soon = network.random.expovariate(1 / self._speed)
            notice = partial(self._break_at, other)
            life = self._life
            network.events.after(
                soon, lambda: network.act(other, notice) if life == self._life else None
            )
        if place == self.opener:
            self.was_broken = True
            if network.random.random() < 0.5:  # a new socket in place of the old one
                self._unsent.clear()
            self._attempt()
        self._broke(place)

    def _attempt(self) -> None:
        """Try to connect, until it works or is given up."""
        network = self._network
        if self.closed or not network.has(self.opener) or not network.comes_back(self.server):
            return
        if self._hindrance() or not network.has(self.server):
            pause = network.patience.ping * network.random.uniform(0.5, 1.0)
            network.events.after(pause, self._attempt)
        else:
            network.events.after(network.random.expovariate(1 / self._speed), self._make)

    def _make(self) -> None:
        network = self._network
        if self._hindrance() or not network.has(self.server):
            self._attempt()
            return
        if self.closed or not network.has(self.opener):
            return
        if self._open[self.server]:  # it has not noticed that the last one broke
            self._open[self.server] = False
            self._broke(self.server)
        self._life += 1
        self._trouble += 1
        self._whole = True
        self._open = dict.fromkeys(self._open, True)
        before, self.was_broken = self.was_broken, False
        unsent, self._unsent = self._unsent, []
        for arrive in unsent:
            self._carry(self.opener, arrive)
        self._made(before)


class SimulatedTransport(Wire):
    """The data plane of the process at `place`, listening at `endpoint`. `arrived` gets each
    message.
    """

    def __init__(
        self, network: Network, place: str, endpoint: str, arrived: Callable[[Message], None]
    ) -> None:
        super().__init__()
        self.endpoint = endpoint
        self._place = place
        self._network = network
        self._sessions: dict[MemberId, Session] = {}
        self._receivers: dict[MemberId, Callable[[Message], None]] = {}
        self._made_again: list[MemberId] = []
        self._known_up: set[MemberId] = set()
        self.held: deque[Message] = deque()
        """What has arrived and waits for `receive`."""
        network.listen(endpoint, place, arrived)

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        self.disconnect(peer)
        place, self._receivers[peer] = self._network.listener(endpoint)

        def made(again: bool) -> None:
            if again:
                self._made_again.append(peer)

        self._sessions[peer] = self._network.open(self._place, place, made)

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
        payload = b"".join(buffers)  # type: ignore[arg-type]  # which are on the host
        message = Message(memoryview(header), memoryview(payload))
        if not session.send(self._place, partial(self._receivers[peer], message)):
            return None
        return "memory", len(payload)
