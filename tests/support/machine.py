"""The coordinator's state machine with shorthands, and messages that workers send it."""

from __future__ import annotations

from coordinator.machine.commands import Event
from coordinator.machine.membership import Membership
from tests.support.layouts import make_layout
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.control import PROTOCOL
from washp2p.protocol.messages.from_worker import (
    Attach,
    Averaged,
    Averaging,
    Finished,
    Hello,
    Synced,
    Vitals,
)

LAYOUT = make_layout([[9, 3], [12]])


def hello(pid=1, **changes):
    values = {"protocol": PROTOCOL, "derivation": 1, "version": "1.2", "host": "a", "pid": pid}
    return Hello(**(values | changes))


def vitals(steps=0, distance=-1.0, sent=(), **changes):
    values = {
        "steps": steps,
        "seconds": 2.0,
        "waited": 0.5,
        "planning": 0.1,
        "generation": 0,
        "applied": 5,
        "max_delay": "3",
        "late": 1.5,
        "lost": {"sender dropped": 4, "link broken": 3},
        "refused": 0,
        "refused_messages": {},
        "distance": distance,
        "sent": list(sent),
    }
    return Vitals(**(values | changes))


def finished():
    return Finished(
        rounds=16,
        steps=16,
        seconds=1.0,
        waited=0.0,
        max_delay="0",
        applied_values=10,
        lost={},
        refused_values=0,
        refused_messages={},
        parameters=24,
        theory=1.0,
        paper=1.0,
        papa=1.0,
        papa_all_reduce=1.0,
    )


def events(commands):
    return [command.text for command in commands if isinstance(command, Event)]


class Run:
    """A Membership with shorthands: `tell` returns the commands of one event."""

    def __init__(self, n=3, rounds=40, seed=0, **options):
        self.machine = Membership(
            RunConfig.resolve(n=n, seed=seed, **options),
            run=b"12345678",
            origin=b"87654321",
            name="x",
            version="1.2",
            derivation=1,
        )
        self.rounds = rounds
        self.now = 0.0

    def tell(self, who, message):
        return list(self.machine.receive(b"%d" % who, message, self.now))

    def gone(self, who):
        return list(self.machine.gone(b"%d" % who, self.now))

    def tick(self):
        return list(self.machine.tick(self.now))

    def average(self, who, generation=0, number=1, after=16):
        """It begins an average, and holds it."""
        return self.tell(who, Averaging(number, after)) + self.tell(
            who, Averaged(generation, number)
        )

    def start(self):
        for who in range(self.machine.population.config.n):
            self.tell(who, hello(who))
        for who in range(self.machine.population.config.n):
            commands = self.tell(who, self.attach(who))
        return commands

    def attach(self, who, layout=LAYOUT, rounds=None, near=()):
        endpoint = f"tcp://127.0.0.1:{9000 + who}"
        return Attach(
            layout.to_wire(), endpoint, list(near), "here", b"", rounds or self.rounds, {}, ""
        )

    def sync(self):
        for who in range(self.machine.population.config.n):
            commands = self.tell(who, Synced(0))
        return commands
