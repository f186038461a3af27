"""The command lines of benchmarks: each says what it measures and how long, before it runs."""

from __future__ import annotations

import ast
import sys
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks import record
from tests.support.sources import ROOT

PROGRAMS = [
    path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text()
]


@pytest.mark.parametrize(
    "path", [p for p in PROGRAMS if p.stem != "record"], ids=lambda path: path.stem
)
def test_a_benchmark_begins_with_its_command_line(path):
    tree = ast.parse(path.read_text())
    assert f"python -m benchmarks.{path.stem}" in ast.get_docstring(tree)
    last = tree.body[-1]
    assert isinstance(last, ast.If)
    calls = [node for node in ast.walk(last) if isinstance(node, ast.Call)]
    (run,) = (call for call in calls if getattr(call.func, "id", "") == "run")
    assert [keyword.arg for keyword in run.keywords] == ["takes"]


@pytest.fixture
def program(monkeypatch):
    """Sets the arguments of a program with this docstring."""
    module = ModuleType("__main__", "What it measures.")
    module.__spec__ = SimpleNamespace(name="benchmarks.some")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(record, "_folder", record.RESULTS)
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["some", *arguments])


def test_help_runs_nothing(program, capsys):
    program("--help")
    with pytest.raises(SystemExit):
        record.run(lambda: pytest.fail("it ran"), takes="a minute")
    printed = capsys.readouterr().out
    assert "What it measures." in printed
    assert "Takes a minute on two cores." in printed


def test_tables_go_where_they_are_wanted(program, tmp_path, monkeypatch, capsys):
    program("rounds", f"--out={tmp_path}")
    monkeypatch.setattr(record, "installed", lambda: {"python": "3"})  # it asks a process
    several = {"rounds": lambda: record.record("x", "X", ["a"], [[1]], "Notes."), "training": None}
    assert record.run(several, takes="a minute") == 0
    assert (tmp_path / "x.md").read_text() in capsys.readouterr().out
    assert "| 1 |" in (tmp_path / "x.md").read_text()


def test_one_of_several_things_must_be_named(program, capsys):
    program()
    with pytest.raises(SystemExit):
        record.run({"rounds": lambda: None}, takes="a minute")
    assert "what" in capsys.readouterr().err
