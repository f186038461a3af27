"""`washp2p status`: a real run, looked at from another process."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

from tests.support.processes import LONG
from tests.support.sources import ROOT
from washp2p.protocol.version import VERSION
from washp2p.sockets import keys


def status(address, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "washp2p", "status", address, *flags],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_run_is_looked_at(runs):
    coordinator, _ = runs.population(3, *LONG)
    coordinator.until("epoch 3")
    view = None
    while not (view and view["distance"] and all("steps" in row for row in view["members"])):
        code, output, _ = status(coordinator.address, "--json")
        assert code == 0
        view = json.loads(output)
    assert (view["run"], view["state"], view["n"]) == ("run", "training", 3)
    assert view["version"] == VERSION
    assert [row["member"] for row in view["members"]] == [0, 1, 2]
    assert view["distance"] > 0
    for row in view["members"]:
        assert 0 < row["round"] <= view["rounds"]
        assert row["bytes"] > 0
        assert row["loss"] > 0
        assert row["planning"] > 0
    pairs = {(row["member"], row["peer"]) for row in view["sent"] if row["kind"] == "exchange"}
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert any("training begins" in event["text"] for event in view["events"])
    code, output, _ = status(coordinator.address)
    assert code == 0
    assert "run: training, round" in output
    assert "\x1b" not in output


def test_only_who_has_the_key_may_look(runs, tmp_path):
    keys.make(tmp_path / "keys")
    coordinator = runs.coordinator("--n=2", f"--keys={tmp_path / 'keys'}")
    code, _, error = status(coordinator.address, "--wait=1")
    assert code == 2
    assert f"no coordinator answered at {coordinator.address} within 1 s" in error
    code, output, _ = status(coordinator.address, f"--keys={tmp_path / 'keys'}", "--json")
    assert code == 0
    assert json.loads(output)["encrypted"]
    assert coordinator.process.poll() is None


class Terminal:
    """A command on a terminal, and what it has shown there."""

    def __init__(self, *command):
        self._screen, ours = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=ours,
            stderr=ours,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(ours)
        self.shown = ""

    def until(self, words, times=1):
        """Read until `words` were shown so often."""
        while self.shown.count(words) < times:
            self.shown += os.read(self._screen, 4096).decode(errors="replace")

    def close(self):
        """End it; its exit code."""
        self.process.terminate()
        code = self.process.wait(10)
        os.close(self._screen)
        return code


def test_a_terminal_sees_it_go_on(runs):
    coordinator, _ = runs.population(2, *LONG)
    coordinator.until("epoch 1")
    terminal = Terminal("washp2p", "status", coordinator.address)
    terminal.until("run: training", times=3)
    assert terminal.close() == 130


def test_the_coordinators_own_terminal_shows_it_too(runs, tmp_path):
    """A table that is drawn anew once a second, with events above it."""
    flags = ("--n=2", *LONG, f"--run-dir={tmp_path / 'run'}", "--bind=tcp://127.0.0.1:*")
    terminal = Terminal("coordinator", *flags)
    terminal.until("members wanted")
    address = re.search(r"coordinator at (tcp://[\d.:]+)", terminal.shown)[1]
    for _ in range(2):
        runs.worker(address)
    terminal.until("run: training", times=3)
    for words in ("training begins", "held out", "left", "rounds/s"):
        terminal.until(words)
    assert terminal.close() == 130
