"""A simulated worker process: a member's core, its loop, and what surrounds them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from washp2p.driver.outbox import DeviceOutbox
from washp2p.errors import DroppedError, WashError
from washp2p.member.assembly import Ports, core_of
from washp2p.member.derivation import Derivation
from washp2p.model.store import Store
from washp2p.protocol.messages.from_worker import Attach, Busy, Result
from washp2p.rounds.waiting import Wait, Waiting
from washp2p.strategies import strategy_for
from washp2p.testing.conversation import SimulatedConversation
from washp2p.testing.events import Killed, Pause, Until
from washp2p.testing.memory import DirectPlans, MemoryFolder, MemoryLog, Resumed
from washp2p.testing.tasks import spoil
from washp2p.testing.transport import SimulatedTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from random import Random

    import torch

    from washp2p.member.core import MemberCore
    from washp2p.member.peer_average import PeerAverage
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.inbox import Inbox
    from washp2p.testing.memory import Host
    from washp2p.testing.network import Network
    from washp2p.testing.sessions import Session
    from washp2p.testing.tasks import Task
    from washp2p.transports.base import Message


WAIT = 60.0  # seconds, until the coordinator decides on a worker


@dataclass(frozen=True)
class World:
    """What all processes of a simulation share."""

    network: Network
    random: Random
    task: Task
    rounds: int
    tell: Callable[[bytes, bytes], None]
    """Brings the message of a worker to the coordinator: its identity, and the bytes."""
    dropped: Callable[[SimulatedProcess], None]
    """Is told of a worker that was dropped before it trained."""


class SimulatedProcess:
    """One worker process. `number` is its own in the simulation; its member id may differ."""

    def __init__(
        self, world: World, number: int, endpoint: str, host: Host, *, step_seconds: float
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        """Where its data plane listens."""
        self.identity = b"w" + number.to_bytes(15, "big")
        """What the coordinator knows its connection by."""
        self.place = f"process-{number}"
        self.host = host
        """The machine that it runs on."""
        self.log = MemoryLog(self.acts, host, -1)
        self.alive = True
        self.longest_wait = 0.0
        """The longest that it has waited for others, in seconds, once it was a member."""
        self.out_of_action = 0.0
        """For how many seconds, in all, it is stopped or cut off from its coordinator."""
        self.dies_at = 0
        """The number of the act, a message or a write, in which it dies; 0 for none."""
        self.busy_for = 0.0
        self.died_in_act = False
        self.killed_while = ""
        self.error: WashError | None = None
        """Why it has ended early, if it has."""
        self.averaged: dict[str, torch.Tensor] | None = None
        """The averaged model's state dict, once it is taken."""
        self.model: torch.nn.Module | None = None
        self.core: MemberCore | None = None
        self.resumed: Resumed | None = None
        """The checkpoint that it began with, if any."""
        self.transport: SimulatedTransport | None = None
        self._world = world
        self._events = world.network.events
        self._step_seconds = step_seconds
        world.network.add(self.place)
        self._conversation = SimulatedConversation(world.network, self, world.tell)
        self._life = self._live()
        self._waits: Waiting | Pause | Until = Pause(0.0)
        self._waits_since = 0.0
        self._turn = 0
        self._begun = False
        self._acts = 0
        self.after(0.0, self._resume)

    @property
    def member(self) -> MemberId:
        """Its member id; -1 before it has one."""
        return self._conversation.member

    @property
    def diverged_after(self) -> int:
        """The first step after which its model was no numbers; 0 if there is none."""
        return self.host.diverged_after.get(self.member, 0)

    @property
    def state(self) -> str:
        """Its state in words."""
        if not self.alive:
            return "gone"
        if self.averaged is not None:
            return "finishing"
        if self.core is None or not self._begun:
            return "joining"
        if self.core.parts.averages.current is not None:
            return "averaging"
        return "waiting" if isinstance(self._waits, Waiting) else "computing"

    @property
    def session(self) -> Session:
        """Its connection to the coordinator."""
        return self._conversation.session

    @property
    def now(self) -> float:
        """The time of its host's clock."""
        return self._events.now + self.host.clock

    def hear(self, data: bytes) -> None:
        """Take a message of the coordinator."""
        if self.alive:
            self._conversation.take(data)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in `seconds`, or later if the process is stopped then."""
        network = self._world.network
        self._events.after(seconds, lambda: network.act(self.place, action))

    def wake(self) -> None:
        """Look again: the coordinator has told something, or time has passed."""
        if isinstance(self._waits, Waiting):
            self._try(partial(self._inbox.tick, self._waits))
        self._go_on()

    def kill(self) -> None:
        """End it now, unless it has ended."""
        if self.alive:
            self.killed_while = self.state
            self.die()

    def acts(self) -> None:
        """Count an act, and die if it is the one."""
        self._acts += 1
        if self._acts == self.dies_at:
            self.died_in_act = self.alive
            self.kill()
            raise Killed

    def die(self) -> None:
        """End at once: its host closes its connections."""
        self.alive = False
        self._world.network.remove(self.place)
        if self.core is not None:
            self.core.parts.advice.close()

    def _live(self) -> Generator[Wait | Pause | Until, None, None]:
        """The program of a worker, from its first message to the last."""
        world, conversation = self._world, self._conversation
        conversation.greet()
        yield Until(lambda: conversation.decided)
        conversation.check()
        conversation.begin()
        member, task = conversation.member, world.task
        if not conversation.resumes:
            self.host.logs[member] = []
        self.log = MemoryLog(self.acts, self.host, member)
        model, optimizer = task.make(member)
        self.model = model
        strategy = strategy_for(conversation.config)
        store = Store(model, optimizer, strategy.slots(optimizer))
        transport = SimulatedTransport(
            world.network, self.place, self.endpoint, self._arrived, self.acts
        )
        ports = Ports(
            connection=conversation,
            transport=transport,
            outbox=DeviceOutbox(transport),
            plans=DirectPlans(Derivation(strategy, store, member), conversation),
            planning=lambda: 0.0,
            log=self.log,
            folder=MemoryFolder(self.host, member, self.acts),
            clock=lambda: self.now,
            warn=lambda _: None,
            proven=False,
        )
        core = core_of(ports, model, optimizer, store=store, strategy=strategy, rounds=world.rounds)
        self.core, self.transport = core, transport
        attach = Attach(
            store.layout.to_wire(), transport.endpoint, [], self.place, b"", world.rounds, {}, ""
        )
        yield from core.begin(attach)
        self._begun = True
        if core.parts.round_loop.steps < self.diverged_after:  # it went back to before
            del self.host.diverged_after[member]
        round_loop = core.parts.round_loop
        if conversation.resumes:
            states = deepcopy((model.state_dict(), optimizer.state_dict()))
            self.resumed = Resumed(round_loop.round, round_loop.steps, *states)
        while round_loop.round < world.rounds:
            yield Pause(self._step_seconds * world.random.uniform(0.5, 1.5))
            yield from self._spend_delays()
            task.step(model, optimizer, member, round_loop.steps + 1)
            if self.host.diverges:
                self.host.diverged_after.setdefault(member, round_loop.steps + 1)
                spoil(model)
            self._inbox.take_all(iter(transport.receive, None))
            yield from core.round()
        yield from core.begin_average(None)
        average = yield from core.take_average()
        self.averaged = store.state_dict(average.averaged)
        if (yield from average.leads()):
            yield from self._evaluate(average)
        yield from core.finish()

    def _spend_delays(self) -> Generator[Pause, None, None]:
        """Spend the time by which the host delays this step."""
        host = self.host
        if host.busy:
            seconds, host.busy = host.busy, 0.0
            self.busy_for += seconds
            self._conversation.tell(Busy(seconds + 1.0))
            yield Pause(seconds)
            self._conversation.tell(Busy(0.0))
        if host.slow:
            seconds, host.slow = host.slow, 0.0
            yield Pause(seconds)

    def _evaluate(self, average: PeerAverage) -> Generator[Wait | Pause, None, None]:
        """Fetch the values that each member brought to the average, and report an accuracy."""
        assert average.over is not None
        there = list(average.over.members)
        for member in there:
            yield from average.of(member)
        yield Pause(self._step_seconds)
        found = Result(average.number, there, [50.0] * len(there), 50.0, 50.0, 50.0)
        self._conversation.tell(found)

    def _arrived(self, message: Message) -> None:
        if not self.alive:
            return
        if isinstance(self._waits, Waiting):
            self._try(partial(self._inbox.take, message))
            self._go_on()
        else:
            assert self.transport is not None
            self.transport.held.append(message)

    @property
    def _inbox(self) -> Inbox:
        assert self.core is not None
        return self.core.parts.inbox

    def _try(self, action: Callable[[], None]) -> None:
        """Do something during a wait; an error ends the wait within the procedure."""
        try:
            action()
        except WashError as error:
            self._resume(error)

    def _go_on(self) -> None:
        """Resume the program if what it waits for is there."""
        while self.alive:
            match self._waits:
                case Waiting() as waiting if self._inbox.is_over(waiting):
                    self._resume()
                case Until(condition) if condition():
                    self._resume()
                case _:
                    return

    def _resume(self, error: WashError | None = None) -> None:
        if not self.alive:
            return
        if isinstance(self._waits, Waiting) and self._begun:
            self.longest_wait = max(self.longest_wait, self._events.now - self._waits_since)
        self._turn += 1
        try:
            wanted = next(self._life) if error is None else self._life.throw(error)
        except StopIteration:
            self.die()
            return
        except WashError as failure:
            self.error = failure
            self._conversation.tell_why(failure)
            self.die()
            if isinstance(failure, DroppedError) and not self._begun:
                self._world.dropped(self)
            return
        match wanted:
            case Wait():
                self._waits, self._waits_since = self._inbox.begin(wanted), self._events.now
                self._take_what_was_held(self._waits)
            case Pause(seconds):
                self._waits = wanted
                self.after(seconds, self._after_pause)
            case Until():
                self._waits = wanted
                self.after(WAIT, self._give_up)

    def _take_what_was_held(self, waiting: Waiting) -> None:
        """Begin a wait: what has come meanwhile is handed over first."""
        turn = self._turn
        assert self.transport is not None
        while self.transport.held and turn == self._turn and not self._inbox.is_over(waiting):
            self._try(partial(self._inbox.take, self.transport.held.popleft()))
        if turn == self._turn:
            self._tick_later(turn)

    def _tick_later(self, turn: int) -> None:
        ping = self._conversation.patience.ping

        def tick() -> None:
            if self.alive and turn == self._turn:
                self.wake()
                if turn == self._turn:
                    self._tick_later(turn)

        self.after(ping, tick)

    def _give_up(self) -> None:
        if not self._conversation.decided:
            self._conversation.give_up()

    def _after_pause(self) -> None:
        self._resume()
        self._go_on()
