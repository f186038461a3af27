"""Real populations: a coordinator process, and worker processes forked with torch already loaded.

Importing torch costs seconds a process, so workers come from a fork server that has done it; from
there on they run `workers.__main__.main` just as `python -m workers` does.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import zmq

from tests.support.hosts import enter, on_host
from tests.support.population import LOOPBACK, start_coordinator
from tests.support.sources import ROOT
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.control import PROTOCOL, messages
from washp2p.protocol.messages.from_worker import Hello
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.runfolder import rundir
from washp2p.runfolder.roster_store import read_rosters
from washp2p.runfolder.runlog import read_log
from workers.fork import PRELOADED
from workers.simulation.simulate import differences, simulate
from workers.training.data import load_data

LONG = ("--epochs=400", "--lr=0.02", "--p=0.05")
"""Flags of a run that goes on for as long as a test looks at it."""
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([*PRELOADED])


def work(arguments, output, host=None):
    """Be a worker whose output goes to the file `output`, perhaps on a host of its own."""
    if host is not None:
        enter(host)
    with Path(output).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from workers.__main__ import main

    sys.exit(main(arguments))


class Worker:
    """One worker process and what it has printed. `target` takes what `work` does, and `more`."""

    def __init__(self, arguments, output, *more, target=work):
        self.output = output
        self.process = FORKSERVER.Process(target=target, args=(arguments, output, *more))
        self.process.start()

    def wait(self, seconds=60):
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running:\n{self.text}"
        return self.process.exitcode

    @property
    def text(self):
        return self.output.read_text()

    def close(self):
        """Leave nothing of it."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


class Coordinator:
    """One coordinator process; `address` once it listens, `lines()` as it prints."""

    def __init__(self, arguments, folder, bind=LOOPBACK, where=(), **options):
        self.folder = folder
        self.process, self.address = start_coordinator(
            *arguments,
            folder=folder,
            bind=bind,
            where=where,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            **options,
        )
        self.printed = []

    def until(self, words):
        """Read what it prints until a line has `words`."""
        for line in self.process.stdout:
            self.printed.append(line.rstrip())
            if words in line:
                return line
        raise AssertionError(f"{words!r} never printed:\n" + "\n".join(self.printed))

    def wait(self, seconds=60):
        output, _ = self.process.communicate(timeout=seconds)
        self.printed.extend(output.splitlines())
        return self.process.returncode

    def kill(self):
        """End it at once, if it runs, and leave nothing of it."""
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # it was waited for
            self.process.communicate()

    @property
    def text(self):
        return "\n".join(self.printed)

    @property
    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())


class Runs:
    """Starts coordinators and workers for a test, and leaves none behind."""

    def __init__(self, folder):
        self.folder = folder
        self.coordinators = []
        self.workers = []

    def coordinator(self, *arguments, name="run", **options):
        self.coordinators.append(Coordinator(arguments, self.folder / name, **options))
        return self.coordinators[-1]

    def worker(self, address, *arguments, name="run", host=None):
        output = self.folder / f"worker-{len(self.workers)}.txt"
        flags = [f"--coordinator={address}", f"--run-dir={self.folder / name}", "--threads=1"]
        flags.append(f"--data-dir={self.folder}")
        self.workers.append(Worker([*flags, *arguments], output, host))
        return self.workers[-1]

    def population(self, n, *arguments, name="run"):
        """A coordinator and n workers."""
        coordinator = self.coordinator(f"--n={n}", *arguments, name=name)
        return coordinator, [self.worker(coordinator.address, name=name) for _ in range(n)]

    def close(self):
        for worker in self.workers:
            worker.close()
        for coordinator in self.coordinators:
            coordinator.kill()


def collect(target, arguments):
    """A process for each tuple of `arguments`, a queue being the last one; what they put into it.

    All must end well.
    """
    queue = FORKSERVER.Queue()
    processes = [FORKSERVER.Process(target=target, args=(*each, queue)) for each in arguments]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
        process.close()
    queue.close()
    queue.join_thread()
    return found


def linked_by(summary):
    """By what each member's values went to each other one, by (member, peer)."""
    return {
        (row["member"], link["peer"]): link["wire"]
        for row in summary["bytes"]
        for link in row["links"]
        if link["kind"] == "exchange"
    }


def read_logs(run):
    """By member, the records of its run log."""
    rosters = read_rosters(run / rundir.JOURNAL)
    members = sorted({member for roster in rosters for member in roster.members})
    return {m: list(read_log(rundir.log_file(run, m), rosters)) for m in members}


def replay(run, tmp_path):
    """Which models a replay of the run gets wrong."""
    config = rundir.read_config(run)
    folder = tmp_path / "replay"
    data = load_data(config, tmp_path, download=False)
    simulate(config, data, folder, on_epoch=lambda _: None, replay=run)
    return differences(folder, run)


def simulated(tmp_path, **options):
    config = RunConfig.resolve(**options)
    folder = tmp_path / "simulated"
    data = load_data(config, tmp_path, download=False)
    return folder, simulate(config, data, folder, on_epoch=lambda _: None)


def command(*arguments, timeout=60):
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def greet(address, **changes):
    """Say hello by hand, as a worker of another kind would; its answer, and the socket."""
    values = {
        "protocol": PROTOCOL,
        "derivation": DERIVATION,
        "version": VERSION,
        "host": "h",
        "pid": 1,
    }
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(address)
    dealer.send(messages.encode(Hello(**(values | changes))))
    assert dealer.poll(10_000)
    return messages.decode(dealer.recv()), dealer


def start(host, *arguments):
    """Start a program on a host of its own; its process."""
    return subprocess.Popen(
        [*on_host(host), sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
