"""A simulated network: messages take time, connections keep them in order, paths are cut and heal.

Connections differ in speed, so messages of different senders arrive in any order. A connection
breaks when its path is cut, or the process at one end is stopped, for longer than a heartbeat may
be late, and as soon as a process ends. It is made again when it can be. What was under way is lost.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from washp2p.testing.events import Killed
from washp2p.testing.sessions import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from washp2p.protocol.patience import Patience
    from washp2p.testing.events import Events
    from washp2p.transports.base import Message

    Action = Callable[[], None]


class Network:
    """Carries data among named places, at each of which a process runs.

    Heartbeats are as `patience` says.
    """

    def __init__(self, events: Events, random: Random, patience: Patience) -> None:
        self.events = events
        self.random = random
        self.patience = patience
        self.acting = ""
        """The place at which something is being done."""
        self._stopped: dict[str, deque[Action]] = {}
        self._places: set[str] = set()
        self._gone: set[str] = set()
        self._cut: set[tuple[str, str]] = set()
        self._sessions: list[Session] = []
        self._given = 0
        self._listeners: dict[str, tuple[str, Callable[[Message], None]]] = {}

    def add(self, place: str) -> None:
        """A process begins at `place`."""
        self._places.add(place)

    def listen(self, endpoint: str, place: str, receive: Callable[[Message], None]) -> None:
        """Let `receive` get messages sent to `endpoint`, which the process at `place` has, unless
        another process has it.
        """
        if endpoint not in self._listeners or not self.has(self._listeners[endpoint][0]):
            self._listeners[endpoint] = place, receive

    def new_endpoint(self) -> str:
        """An endpoint that nobody has had."""
        self._given += 1
        return f"tcp://10.0.0.{self._given}:5556"

    def drawn_endpoint(self) -> str:
        """A new endpoint, or that of a process that is gone or, by mistake, of one that is not."""
        freed = [end for end, (place, _) in self._listeners.items() if not self.has(place)]
        if freed and self.random.random() < 0.5:
            return freed[-1]
        if self._listeners and self.random.random() < 0.1:
            return self.random.choice(list(self._listeners))
        return self.new_endpoint()

    def deliver(self, endpoint: str, message: Message) -> None:
        """Hand `message` to whoever listens at an endpoint."""
        self._listeners[endpoint][1](message)

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

    def comes_back(self, address: str) -> bool:
        """Whether there is, or may be again, a process at a place or endpoint."""
        return address not in self._gone

    def resolved(self, address: str) -> str:
        """The place that `address` is, or whose endpoint it is."""
        return self._listeners[address][0] if address in self._listeners else address

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
            self.act(place, waiting.popleft())

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
            before, self.acting = self.acting, place
            with suppress(Killed):
                action()
            self.acting = before

    def open(
        self,
        opener: str,
        server: str,
        made: Callable[[bool], None],
        broke: Callable[[str], None] = lambda _: None,
    ) -> Session:
        """Open a connection from one place to another, or to an endpoint."""
        session = Session(self, opener, server, made, broke)
        self._sessions.append(session)
        return session

    def _of(self, place: str) -> list[Session]:
        return [s for s in self._sessions if place in {s.opener, s.server} and not s.closed]
