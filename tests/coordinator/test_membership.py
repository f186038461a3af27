"""The coordinator's state machine, driven by events alone."""

from __future__ import annotations

import pytest

from coordinator.commands import End, Event, Record, Send
from coordinator.membership import Membership
from tests.conftest import make_layout
from washp2p.config import RunConfig
from washp2p.control import (
    PROTOCOL,
    Accounts,
    Attach,
    Finish,
    Finished,
    Hello,
    Leave,
    Metrics,
    NewRoster,
    Progress,
    Refuse,
    Result,
    Seeds,
    Stop,
    Synced,
    Welcome,
)
from washp2p.rounds import round_seed, run_key, unpack_seeds

LAYOUT = make_layout([[9, 3], [12]])


def hello(pid=1, **changes):
    values = {"protocol": PROTOCOL, "derivation": 1, "version": "1.2", "host": "a", "pid": pid}
    return Hello(**(values | changes))


class Run:
    """A Membership with shorthands: `tell` returns the commands of one event."""

    def __init__(self, n=3, rounds=40, seed=0):
        self.machine = Membership(
            RunConfig.resolve(n=n, seed=seed),
            run=b"12345678",
            name="x",
            version="1.2",
            derivation=1,
        )
        self.rounds = rounds
        self.now = 0.0

    def tell(self, who, message):
        return list(self.machine.receive(b"%d" % who, message, self.now))

    def start(self):
        for who in range(self.machine.config.n):
            self.tell(who, hello(who))
        for who in range(self.machine.config.n):
            commands = self.tell(who, self.attach(who))
        return commands

    def attach(self, who, layout=LAYOUT, rounds=None):
        return Attach(layout.to_wire(), f"tcp://127.0.0.1:{9000 + who}", rounds or self.rounds, {})

    def sync(self):
        for who in range(self.machine.config.n):
            commands = self.tell(who, Synced())
        return commands


def sent(commands, kind):
    return [
        (c.identity, c.message)
        for c in commands
        if isinstance(c, Send) and isinstance(c.message, kind)
    ]


def finished():
    return Finished(
        rounds=40,
        steps=40,
        seconds=1.0,
        waited=0.0,
        max_delay="0",
        applied_values=10,
        expired_values=0,
        theory={},
    )


def test_ids_follow_the_order_of_joining_and_the_configuration_goes_along():
    run = Run()
    for who in range(3):
        ((identity, welcome),) = sent(run.tell(who, hello(who)), Welcome)
        assert (identity, welcome.member) == (b"%d" % who, who)
        assert RunConfig.from_wire(welcome.config) == run.machine.config


def test_the_roster_goes_out_when_all_have_attached():
    run = Run()
    rosters = sent(run.start(), NewRoster)
    assert [identity for identity, _ in rosters] == [b"0", b"1", b"2"]
    assert rosters[0][1].peers == [[m, f"tcp://127.0.0.1:{9000 + m}", "a"] for m in range(3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": 9}, "protocol version 9 on a, 2 at the coordinator"),
        ({"version": "9.9"}, "version of washp2p 9.9 on a, 1.2 at the coordinator"),
        ({"derivation": 9}, "plan derivation 9 on a, 1 at the coordinator"),
    ],
)
def test_other_versions_are_refused_naming_both_sides_and_the_cure(changes, words):
    ((_, refusal),) = sent(Run().tell(0, hello(**changes)), Refuse)
    assert words in refusal.reason
    assert "install the same version of washp2p on both" in refusal.reason


def test_one_worker_too_many_is_refused():
    run = Run()
    for who in range(3):
        run.tell(who, hello(who))
    ((_, refusal),) = sent(run.tell(3, hello(3)), Refuse)
    assert "the run has its 3 members" in refusal.reason
    assert "--n" in refusal.reason


def test_another_model_is_refused_and_its_place_stays_open():
    run = Run()
    for who in range(3):
        run.tell(who, hello(10 + who))
    run.tell(0, run.attach(0))
    ((identity, refusal),) = sent(run.tell(1, run.attach(1, make_layout([[9, 4], [12]]))), Refuse)
    assert identity == b"1"
    assert (
        "member 1 (a, process 11) does not fit that of member 0 (a, process 10)" in refusal.reason
    )
    assert "0.1[4]" in refusal.reason
    assert "build the same model" in refusal.reason
    ((_, refusal),) = sent(run.tell(2, run.attach(2, rounds=41)), Refuse)
    assert "41 rounds" in refusal.reason
    for who in (7, 8):
        assert sent(run.tell(who, hello(who)), Welcome)[0][1].member == who - 4  # never reused
        commands = run.tell(who, run.attach(who))
    assert [m for m, *_ in sent(commands, NewRoster)[0][1].peers] == [0, 3, 4]


def test_a_worker_that_leaves_before_the_start_frees_its_place():
    run = Run()
    run.tell(0, hello())
    commands = run.tell(0, Leave("no data", 2))
    assert commands == [
        Event("member 0 (a, process 1) left: no data"),
        Event("waiting for 3 of 3 members"),
    ]
    assert not run.machine.members


def test_seeds_start_when_all_are_synced_and_stay_ahead_of_the_fastest():
    run = Run(rounds=1000, seed=7)
    run.start()
    held = []

    def take(commands):
        for identity, seeds in sent(commands, Seeds):
            assert seeds.epoch == 0
            assert seeds.roster == run.machine.roster.digest()
            if identity == b"1":
                assert seeds.first == len(held) + 1
                held.extend(unpack_seeds(seeds.seeds))

    assert run.tell(0, Progress(0)) == []
    assert not sent(run.tell(0, Synced()), Seeds)
    assert not sent(run.tell(1, Synced()), Seeds)
    take(run.tell(2, Synced()))
    assert len(held) == 16
    while len(held) < 1000:
        run.now += 0.1
        fastest = len(held) - 4
        take(run.tell(2, Progress(fastest)))
        take(run.tell(0, Progress(1)))
        assert len(held) >= min(1000, fastest + 8)
    key = run_key(7)
    assert held == [round_seed(key, number) for number in range(1, 1001)]


def test_metrics_are_recorded():
    run = Run()
    run.start()
    assert run.tell(0, Metrics({"loss": 1.0})) == [Record({"loss": 1.0})]


def test_the_run_finishes_when_all_have():
    run = Run()
    run.start()
    run.sync()
    run.tell(0, Result({"ensemble": 99.0}))
    assert run.tell(0, finished()) == []
    assert run.tell(1, finished()) == []
    commands = run.tell(2, finished())
    assert [identity for identity, _ in sent(commands, Finish)] == [b"0", b"1", b"2"]
    assert not any(isinstance(command, End) for command in commands)
    links = [{"peer": 1, "kind": "exchange", "payload": 5}]
    assert run.tell(0, Accounts(links)) == run.tell(1, Accounts([])) == []
    assert list(run.machine.gone(b"0")) == []  # it has said its last word
    assert run.tell(2, Accounts([])) == [End("all members finished", 0)]
    assert run.machine.members[b"0"].counts == links
    assert run.machine.accuracy == {"ensemble": 99.0}
    ((_, refusal),) = sent(run.tell(5, hello()), Refuse)
    assert "the run has ended" in refusal.reason


def test_an_interrupt_before_the_start_ends_the_run_too():
    run = Run()
    run.tell(0, hello(0))
    run.tell(1, hello(1))
    commands = run.tell(0, Leave("it was interrupted", 130))
    assert [identity for identity, _ in sent(commands, Stop)] == [b"1"]
    assert commands[-1] == End("member 0 (a, process 0) left: it was interrupted", 130)


@pytest.mark.parametrize("phase", ["syncing", "training", "finishing"])
def test_a_member_lost_after_the_start_ends_the_run_and_is_named(phase):
    run = Run()
    run.start()
    if phase != "syncing":
        run.sync()
    if phase == "finishing":
        run.tell(0, finished())
    commands = list(run.machine.gone(b"1"))
    reason = "member 1 (a, process 1) died: its connection is closed"
    assert sent(commands, Stop) == [(b"0", Stop(reason, 1)), (b"2", Stop(reason, 1))]
    assert commands[-1] == End(reason, 1)
    assert list(run.machine.gone(b"0")) == []


def test_unknown_senders_and_messages_out_of_place():
    run = Run()
    assert run.tell(9, Progress(3)) == []
    run.start()
    told, event, *commands = run.tell(1, run.attach(1))
    assert isinstance(told.message, Refuse)
    assert "attached twice" in told.message.reason
    assert "attached twice" in event.text
    assert isinstance(commands[-1], End)
    run = Run()
    run.tell(0, hello())
    told, event, *_ = run.tell(0, Attach([], "tcp://x:1", 3, {}))
    assert "not a layout" in told.message.reason
    assert "not a layout" in event.text
