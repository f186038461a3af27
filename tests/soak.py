"""Members and the coordinator die, hang and come at random for M minutes; nothing may pile up.

    python -m tests.soak 60

Real processes on loopback, with checkpoints. At the end all that live average and leave, with exit
code 0. Records what was done, and memory and file descriptors of the coordinators and members.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import washp2p
from benchmarks.record import record
from tests.support.processes import FORKSERVER, Coordinator
from washp2p.errors import DroppedError

MOST, FEWEST = 5, 2
STEP = 0.005
FLAGS = (f"--n={MOST}", f"--min-n={FEWEST}", "--p=0.05", "--patience=2", "--expire=64")
FLAGS += ("--checkpoint-minutes=0.5",)
EVENTS = ("kill", "kill", "stop", "stop", "start", "start", "start", "coordinator")


def member(address, folder, stop):
    """A member that takes steps until `stop`, and joins again when it was dropped."""
    torch.set_num_threads(1)
    while not stop.is_set():
        try:
            connection = washp2p.connect(address, run_dir=folder, seed=True)
            model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 10))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
            with washp2p.join(connection, model, optimizer):
                while not stop.is_set():
                    model(torch.randn(4, 300)).square().mean().backward()
                    time.sleep(STEP)  # what a step computes
                    optimizer.step()
                    optimizer.zero_grad()
        except DroppedError:
            continue


def resources(pid):
    """(MB resident, open file descriptors) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Soak:
    """A population under fire."""

    def __init__(self, folder, seed):
        self.random = random.Random(seed)
        self.folder = folder
        self.stop = FORKSERVER.Event()
        self.coordinator = Coordinator(FLAGS, folder)
        self.address = self.coordinator.address
        self.members = []
        self.done = dict.fromkeys(EVENTS, 0)
        self.samples = {}
        for _ in range(3):
            self.start()

    def start(self):
        process = FORKSERVER.Process(target=member, args=(self.address, self.folder, self.stop))
        process.start()
        self.members.append(process)

    def event(self):
        """One thing happens."""
        what = self.random.choice(EVENTS)
        victim = self.random.choice(self.members)
        if what == "start" and len(self.members) < MOST:
            self.start()
        elif what == "kill" and len(self.members) > FEWEST:
            victim.kill()
            victim.join()
            self.members.remove(victim)
        elif what == "stop" and len(self.members) > FEWEST:
            os.kill(victim.pid, signal.SIGSTOP)
            time.sleep(self.random.uniform(0.1, 3))  # what it is about: hanging for so long
            os.kill(victim.pid, signal.SIGCONT)
        elif what == "coordinator":
            self.coordinator.kill()
            self.coordinator = Coordinator((), self.folder, bind=self.address)
        else:
            return
        self.done[what] += 1

    def sample(self):
        for name, process in [("coordinator", self.coordinator.process)] + [
            (f"process {m.pid}", m) for m in self.members
        ]:
            assert name == "coordinator" or process.is_alive(), f"{name} ended by itself"
            self.samples.setdefault((name, process.pid), []).append(resources(process.pid))

    def end(self):
        """Let all that live finish; what the coordinator found."""
        self.stop.set()
        codes = []
        for process in self.members:
            process.join(120)
            codes.append(process.exitcode)
        code = self.coordinator.wait(60)
        assert code == 0, self.coordinator.text
        assert set(codes) <= {0, 1}, codes  # 1: dropped at the end, and too late to join again
        assert 0 in codes
        return self.coordinator.summary

    def close(self):
        for process in self.members:
            process.kill()
            process.join()
        self.coordinator.kill()


def main():
    minutes = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary) / "run", seed=0)
        try:
            soak.coordinator.until("training begins")
            began = time.monotonic()
            while time.monotonic() - began < 60 * minutes:
                time.sleep(soak.random.uniform(1, 6))  # between two events
                soak.event()
                soak.sample()
            summary = soak.end()
        finally:
            soak.close()
    rows, grown = [], []
    for (name, _), samples in soak.samples.items():
        if len(samples) < 15:
            continue
        first, last = (
            [median(column) for column in zip(*part, strict=True)]
            for part in (samples[3:8], samples[-5:])
        )
        before, after = (f"{megabytes:.1f} MB, {files:g}" for megabytes, files in (first, last))
        rows.append((name, len(samples), before, after))
        if last[0] > first[0] + 30 or last[1] > first[1] + 40:
            grown.append(name)
    done = ", ".join(f"{count} x {what}" for what, count in soak.done.items())
    record(
        "soak",
        f"{minutes:g} minutes of members and coordinators that die, hang and come",
        ("process", "samples", "memory and file descriptors at first", "at last"),
        rows,
        f"{done} (`coordinator`: killed and replaced). {summary['rounds']:,} rounds, "
        f"{len(summary['rosters'])} rosters, {len(summary['departed'])} departures; averaged over "
        f"{len(summary['averaged_over'])} members at the end. Medians of five samples, one an "
        "event; processes with fewer than 15 are left out.",
    )
    assert not grown, f"grew: {grown}"


if __name__ == "__main__":
    main()
