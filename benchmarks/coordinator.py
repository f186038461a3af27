"""What a large population costs the coordinator: a thousand workers that only speak its protocol.

    python -m benchmarks.coordinator

Real sockets and a real coordinator; the workers, all in one process, join, take seeds, report their
progress and answer heartbeats as real ones do, at a steady pace, and compute nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import zmq

from benchmarks.record import record, run
from tests.support.population import coordinator_process, in_processes
from washp2p.protocol.layout import Entry, Layout, Slot
from washp2p.protocol.messages.control import PROTOCOL, Message, messages
from washp2p.protocol.messages.from_coordinator import NewRoster, Seeds, Welcome
from washp2p.protocol.messages.from_worker import Attach, Hello, Leave, Progress, Synced
from washp2p.protocol.patience import Patience
from washp2p.protocol.roster import SEED_BYTES
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.sockets.heartbeats import close_dead_links

RATE = 50
"""Rounds a second."""
SECONDS = 20
BAR = 16
LAYOUT = Layout(
    tuple(
        Entry(name=str(layer), shape=(1000,), stride=(1,), layer=layer, offset=1008 * layer)
        for layer in range(60)
    ),
    (Slot(name="param", dtype="float32"),),
)


class Worker:
    """One worker's end of the control plane."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, number: int) -> None:
        self._dealer = context.socket(zmq.DEALER)
        close_dead_links(self._dealer, Patience())
        self._dealer.connect(address)
        self._due = 0
        self._number = number
        self.seeds = 0
        self.seed_bytes = 0
        self.tell(Hello(PROTOCOL, DERIVATION, VERSION, "host", number))

    def tell(self, message: Message) -> None:
        """Send one message."""
        self._dealer.send(messages.encode(message))

    def listen(self) -> None:
        """Take what has come."""
        while int(self._dealer.get(zmq.EVENTS)) & zmq.POLLIN:
            data = self._dealer.recv()
            match messages.decode(data):
                case Welcome():
                    endpoint = f"tcp://127.0.0.1:{10_000 + self._number}"
                    self.tell(Attach(LAYOUT.to_wire(), endpoint, [], "here", b"", 0, {}, ""))
                case NewRoster(generation):
                    self.tell(Synced(generation))
                case Seeds(seeds=seeds):
                    self.seeds += len(seeds) // SEED_BYTES
                    self.seed_bytes += len(data)
                    self._window = len(seeds) // SEED_BYTES

    def reach(self, round_number: int) -> None:
        """Report progress as a member does: every half window."""
        if round_number >= self._due:
            self.tell(Progress(round_number - 1))
            self._due = round_number + max(1, self._window // 2)

    def leave(self) -> None:
        """Go."""
        self.tell(Leave("the benchmark is over", 0))
        self._dealer.close(linger=1000)


def cpu_seconds(process: int) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def work(_: int, address: str, process: int, n: int) -> tuple[float, float, float, int]:
    """All workers: seconds to start, share of a core, seed bytes a round and worker, seeds late."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * n)
    began = time.monotonic()
    workers = []
    for number in range(n):
        workers.append(Worker(context, address, number))
        if number % 50 == 0:
            time.sleep(0.01)  # a listening socket has room for a hundred at a time
    while not all(worker.seeds for worker in workers):
        for worker in workers:
            worker.listen()
    started = time.monotonic() - began
    began, cpu = time.monotonic(), 0.0
    short = measured_from = 0
    bytes_before = 0
    while (now := time.monotonic() - began) < SECONDS + 2:
        if now > 2 and not cpu:  # the first windows are short, the pace not being known
            cpu, measured_from = cpu_seconds(process), round(now * RATE)
            seeds_before, bytes_before = (
                sum(getattr(w, name) for w in workers) for name in ("seeds", "seed_bytes")
            )
            at = now
        for number, worker in enumerate(workers):
            round_number = round(now * RATE + number / n * 5)
            worker.listen()
            worker.reach(round_number)
            short += measured_from and worker.seeds < round_number
    share = (cpu_seconds(process) - cpu) / (now - at)
    seeds, seed_bytes = (sum(getattr(w, name) for w in workers) for name in ("seeds", "seed_bytes"))
    for worker in workers:
        worker.leave()
    return started, share, (seed_bytes - bytes_before) / (seeds - seeds_before), short


def main() -> None:
    """Measure a few sizes and record them."""
    rows = []
    for n in (10, 100, 1000):
        with coordinator_process(f"--n={n}", "--max-delay=4") as (address, process):
            (found,) = in_processes(1, work, address, process, n)
        assert isinstance(found, tuple)
        started, share, seed_bytes, short = found
        rows.append([n, f"{started:.1f}", f"{share:.0%}", f"{seed_bytes:.1f}", short])
    record(
        "coordinator",
        "What a population costs the coordinator",
        ["workers", "s until training", "of a core", "seed bytes a round, worker", "seeds late"],
        rows,
        f"{RATE} rounds a second for {SECONDS} s, heartbeats and progress reports as real workers "
        f"send them. Bars at 1,000: one core, {BAR} bytes. Seeds late: how often a worker that "
        "came to a round lacked its seed.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about two minutes"))
