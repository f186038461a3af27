"""Logs for programs: a line an event, with run and member on each."""

from __future__ import annotations

import json
import subprocess
import sys

from washp2p.runfolder.process_log import message_of

PROGRAM = """
import logging
from washp2p.commandline import report_errors
from washp2p.errors import UsageError
from washp2p.runfolder.process_log import Log
log = Log({form!r})
log.event("hello", "listening", address="here")
log.about(run="r", member=3)
log.event("epoch 1", "metrics", loss=float("nan"), more=[float("inf"), 1.5])
logging.getLogger("washp2p").warning("member %d is %s", 3, "late")
log.event("a \\n line \\x1b[2J", "joined", member=4)
with report_errors("program"):
    {last}
"""


def run(form, last="raise UsageError('no')"):
    program = PROGRAM.format(form=form, last=last)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_line_of_json_is_an_event():
    code, lines, errors = run("json")
    assert (code, errors) == (2, "")
    events = [json.loads(line) for line in lines]
    assert [(e["run"], e["member"], e["event"], e["level"]) for e in events] == [
        (None, None, "listening", "info"),
        ("r", 3, "metrics", "info"),
        ("r", 3, "log", "warning"),
        ("r", 4, "joined", "info"),
        ("r", 3, "failed", "error"),
    ]
    assert events[0]["address"] == "here"
    assert (events[1]["loss"], events[1]["more"]) == (None, [None, 1.5])  # JSON has no NaN
    assert events[2]["message"] == "member 3 is late"
    assert events[4]["message"] == "program: no"
    assert all(event["time"].endswith("+00:00") for event in events)


def test_what_nobody_foresaw_is_an_event_too():
    code, lines, errors = run("json", "1 / 0")
    assert (code, errors) == (1, "")
    last = json.loads(lines[-1])
    assert (last["event"], last["level"]) == ("crashed", "critical")
    assert "ZeroDivisionError" in last["traceback"]


def test_people_get_text():
    code, lines, errors = run("text")
    assert (code, lines[:2]) == (2, ["hello", "epoch 1"])
    assert errors == "member 3 is late\nprogram: no\n"


def test_the_message_of_a_line_whatever_its_form():
    assert message_of('{"message": "no", "level": "error"}') == "no"
    assert message_of("worker: no") == "worker: no"
    assert message_of("[1]") == "[1]"
