"""What whoever looks at a run is shown: states, paces, distances, events."""

from __future__ import annotations

import io
import json
from math import sqrt

import pytest
from rich.console import Console

from coordinator.machine.commands import Event, What
from coordinator.machine.observation import EVENTS
from tests.support.machine import Run, events, finished, hello, vitals
from washp2p.protocol.messages.control import MESSAGE_LIMIT, messages
from washp2p.protocol.messages.from_coordinator import View
from washp2p.protocol.messages.from_worker import Metrics, Progress
from washp2p.reporting.status_table import render


def view(run):
    """It, as it comes out of JSON."""
    return json.loads(json.dumps(run.machine.observation.view(run.machine.population)))


def shown(view, width=100):
    output = io.StringIO()
    Console(file=output, width=width).print(render({"run": "x", **view}))
    return output.getvalue()


def test_a_run_from_its_beginning_to_its_end():
    run = Run(n=2)
    assert (view(run)["state"], view(run)["members"]) == ("waiting", [])
    run.tell(0, hello(0))
    assert [(row["member"], row["state"]) for row in view(run)["members"]] == [(0, "welcomed")]
    run.start()
    assert view(run)["state"] == "waiting"
    run.sync()
    assert view(run)["state"] == "training"
    for who in range(2):
        run.tell(who, Progress(12 + who))
    assert [row["round"] for row in view(run)["members"]] == [12, 13]
    assert view(run)["round"] == 12
    for who in range(2):
        run.average(who)
    assert view(run)["state"] == "averaging"


def test_paces_are_of_what_members_say_one_after_the_other():
    run = Run(n=2)
    run.start()
    run.sync()
    for second in range(20):
        run.now = float(second)
        run.tell(0, vitals(steps=10 * second, sent=[(1, "exchange", "tcp", 1000 * second)]))
        run.tell(1, vitals(steps=4 * second, sent=[(0, "exchange", "tcp", 50 * second)]))
    first, second = view(run)["members"]
    assert (first["rounds_per_second"], first["bytes_per_second"]) == (10, 1000)
    assert (second["rounds_per_second"], second["bytes_per_second"]) == (4, 50)
    assert (first["bytes"], first["lost"], first["max_delay"]) == (19000, 7, "3")
    assert view(run)["rounds_per_second"] == 4
    assert view(run)["seconds_left"] == 10  # of 40 rounds none is reported by Progress
    assert view(run)["sent"][0] == {
        "member": 0,
        "peer": 1,
        "kind": "exchange",
        "wire": "tcp",
        "bytes": 19000,
    }


def test_the_distance_is_over_those_who_know_it():
    run = Run(n=3)
    run.start()
    assert view(run)["distance"] is None
    run.tell(0, vitals(distance=4.0))
    run.tell(1, vitals(distance=-1.0))
    run.tell(2, vitals(distance=8.0))
    assert view(run)["distance"] == pytest.approx(sqrt(6))


def test_what_a_member_sends_for_nothing_is_refused():
    run = Run(n=2)
    run.start()
    commands = run.tell(0, vitals(sent=[(1, "gossip", "tcp", 5)]))
    assert "for nothing" in str(commands)
    assert view(run)["sent"] == []


def test_a_view_fits_a_message_however_much_is_said():
    run = Run(n=3)
    run.start()
    for who in range(3):
        sent = [(peer % 3, "exchange", "x" * 300, 1 << 62) for peer in range(12_000)]
        run.tell(who, vitals(sent=sent))
        run.tell(who, Metrics({"loss": "x" * 1_000_000, "held_out": 1}))
    for number in range(EVENTS):
        run.machine.observation.event(Event("x" * 5000 + str(number), What.REFUSED), 0.0)
    assert len(messages.encode(View(view(run)))) < MESSAGE_LIMIT


def test_the_last_events_are_remembered():
    run = Run(n=2)
    for number in range(EVENTS + 5):
        run.machine.observation.event(Event(f"event {number}", What.JOINED, 1), float(number))
    seen = view(run)["events"]
    assert [seen[0], seen[-1]] == [
        {"at": 5.0, "event": "joined", "member": 1, "text": "event 5"},
        {"at": EVENTS + 4.0, "event": "joined", "member": 1, "text": f"event {EVENTS + 4}"},
    ]


def test_a_terminal_shows_it_and_nobody_steers_the_terminal():
    run = Run(n=2)
    run.tell(0, hello(0, host="[red]\x1b[2Jx"))
    run.tell(1, hello(1))
    for who in range(2):
        run.tell(who, run.attach(who))
    run.sync()
    run.tell(0, vitals(steps=3, max_delay="[b]\x1b"))
    run.tell(0, Metrics({"loss": 0.5, "held_out": 91.25}))
    run.tell(1, Metrics({"loss": "\x1b[2J", "held_out": [1]}))
    run.machine.observation.event(Event("\x1b]0;title\x07", What.REFUSED), 0.0)
    text = shown(view(run))
    assert "\x1b" not in text
    assert "x: training, round 0/40" in text
    assert "91.25" in text
    assert "0.5000" in text
    assert "[red]" in text


def test_what_is_not_plausible_does_not_break_a_view():
    run = Run(n=2)
    run.start()
    run.sync()
    for second in range(3):
        run.now = float(second)
        run.tell(0, vitals(steps=second * (1 << 62), seconds=0.0, sent=[(1, "exchange", "", 1)]))
        run.tell(1, vitals(steps=second, distance=1e308))
    run.tell(0, vitals(distance=1e308))
    shown(view(run))
    assert not events(run.tell(0, finished()))
