"""What comes from the network becomes neither a path nor a terminal's command unchecked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.machine.commands import Event, What
from coordinator.watch.display import Display
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from washp2p.reporting.report import plain
from washp2p.runfolder import checkpoints, rundir
from washp2p.runfolder.process_log import Log

NASTY = [
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\x00b",
    ".hidden",
    "",
    "a" * 65,
    "a\n",
    "~root",
    "a\\b",
    "-rf",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_run_name_that_is_more_than_a_name_is_refused(name):
    with pytest.raises(UsageError, match="run name"):
        rundir.check_name(name)


@given(st.text(max_size=80), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_all_that_is_written_is_in_the_runs_own_folder(name, member, number):
    try:
        folder = Path("/runs") / rundir.check_name(name)
    except UsageError:
        return
    assert folder.resolve().parent == Path("/runs").resolve()
    for path in (
        rundir.member_file(folder, member),
        rundir.log_file(folder, member),
        checkpoints.checkpoint_file(folder, number, member),
    ):
        assert path.resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize("field", ["model", "data", "method", "schedule"])
@pytest.mark.parametrize("name", ["../resnet18", "os.system", ""])
def test_models_and_data_sets_are_known_names(field, name):
    with pytest.raises(UsageError, match="expected one of"):
        RunConfig.from_wire(RunConfig.resolve(n=2).to_wire() | {field: name})


@pytest.mark.parametrize("field", ["n", "p", "epochs", "max_delay", "seed", "patience"])
@pytest.mark.parametrize("value", [None, [], {}, "x", float("nan"), -1])
def test_a_configuration_of_other_types_is_refused_in_one_line(field, value):
    with pytest.raises(UsageError):
        RunConfig.from_wire(RunConfig.resolve(n=2).to_wire() | {field: value})


@given(st.text())
def test_no_text_steers_a_terminal(text):
    assert all(c.isprintable() for c in plain(text))


def test_what_workers_say_is_shown_as_it_is(capsys):
    with Display(Log()) as display:
        display.event(Event("member 0 (\x1b[31mred\x1b[0m, [bold]process 1)", What.JOINED, 0))
        display.metrics({"member": 0, "round": 1, "\x1b]0;title\x07": "[red]x"})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b[31mred\x1b[0m, [bold]process 1" in shown


def test_what_workers_said_cannot_spoil_the_last_tables(capsys):
    nasty = "[/bold]\x1b[31m[red]"
    row = dict.fromkeys(
        ("member", "steps", "seconds", "waited", "applied_values", "expired_values", "payload",
         "expected_payload", "theory", "header", "messages", "control", "papa", "papa_all_reduce",
         "paper"),
        1,
    )  # fmt: skip
    summary = {
        "accuracy": {"averaged": None},
        "parameters": 1,
        "rounds": 1,
        "seconds": 1.0,
        "rounds_per_second": 1.0,
        "method": "wash",
        "departed": [{"member": 0, "host": nasty, "reason": nasty, "round": 1}],
        "bytes": [{**row, "max_delay": nasty, "lost": {nasty: 1}, "links": []}],
    }
    with Display(Log()) as display:
        display.end(summary)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[/bold]" in shown
