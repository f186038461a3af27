"""A simulated connection between two processes."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from washp2p.protocol.patience import Patience
    from washp2p.testing.events import Events

    Action = Callable[[], None]

FASTEST, SLOWEST = 1e-4, 2e-2
"""Mean seconds that a message takes, of the fastest and of the slowest connection."""


class Paths(Protocol):
    """What a connection needs to know of the network."""

    events: Events
    random: Random
    patience: Patience

    def has(self, place: str) -> bool:
        """Whether a process runs at `place`, or is stopped there."""

    def comes_back(self, address: str) -> bool:
        """Whether there is, or may be again, a process at a place or endpoint."""

    def resolved(self, address: str) -> str:
        """The place that `address` is, or whose endpoint it is."""

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing from `source` reaches `target`."""

    def is_stopped(self, place: str) -> bool:
        """Whether the process at `place` is stopped."""

    def act(self, place: str, action: Action) -> None:
        """Let the process at `place` do something: now, or when it goes on."""


class Session:
    """A connection that the process at `opener` keeps to `server`.

    `made` is called each time it works, and told whether it was broken before. `broke` is called
    with the place of a process that notices that it is broken.
    """

    def __init__(
        self,
        network: Paths,
        opener: str,
        server: str,
        made: Callable[[bool], None],
        broke: Callable[[str], None],
    ) -> None:
        self._address = server
        self.opener, self.server = opener, network.resolved(server)
        self.closed = False
        """Whether the opener has given it up."""
        self.was_broken = False
        """Whether the opener knows it as broken, and not made again."""
        self._network = network
        self._made, self._broke = made, broke
        self._speed = FASTEST * (SLOWEST / FASTEST) ** network.random.random()
        self._last = dict.fromkeys([opener, self.server], 0.0)
        self._open = dict.fromkeys([opener, self.server], False)
        self._stuck: dict[str, deque[Action]] = {opener: deque(), self.server: deque()}
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

    def send(self, source: str, arrive: Action) -> bool:
        """Let `arrive` be called once a message from `source` has reached the other end.

        Returns False if the connection is broken, as the process at `source` knows. Before it is
        made for the first time, messages wait.
        """
        network = self._network
        if network.is_stopped(source):  # in the midst of what it does: it goes on with this

            def go_on() -> None:
                self.send(source, arrive)

            network.act(source, go_on)
            return True
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
        self._follow()
        if self.closed or not network.has(self.opener) or not network.comes_back(self._address):
            return
        if self._hindrance() or not network.has(self.server):
            pause = network.patience.ping * network.random.uniform(0.5, 1.0)
            network.events.after(pause, self._attempt)
        else:
            network.events.after(network.random.expovariate(1 / self._speed), self._make)

    def _follow(self) -> None:
        """If another process has taken over the address, connect to that one."""
        server = self._network.resolved(self._address)
        if server != self.server:
            self._last[server] = self._last.pop(self.server)
            self._stuck[server] = self._stuck.pop(self.server)
            self._open = {self.opener: self._open[self.opener], server: False}
            self.server = server

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
        network.act(self.opener, lambda: self._made(before))
