"""What keys cost, and what a flood does.

    python -m benchmarks.security rounds      # lockstep rounds with keys and without, alternating
    python -m benchmarks.security training    # steps a second under `auto`, with keys and without
    python -m benchmarks.security flood       # rounds while somebody sends what is to be refused

In each, the variants take turns in blocks in the same processes, and ratios are of such turns.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import zmq

import washp2p
from benchmarks.exchange import Nothing, timed
from benchmarks.population import coordinator, in_processes
from benchmarks.record import record
from benchmarks.throughput import mlp, training
from washp2p import keys
from washp2p.control import Metrics, messages
from washp2p.gate import present
from workers.models import build_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.keys import KeyPair

MODEL, P = "resnet18", 0.001
ROUNDS, BLOCKS = 100, 40
STEPS, TURNS = 60, 40
"""Training steps in a block, blocks."""
RATE = 10_000
"""Messages a second of a flood."""
FLOODED, TURNS_OF_FLOOD = 600, 14
"""Rounds in a block, blocks."""
OWN_MESSAGES, OWN_CONNECTIONS = (
    "as many messages to a socket of its own",
    "as many connections to a socket of its own",
)

Found = dict[str, list[float]]


def _rendezvous(name: str) -> str:
    return f"/tmp/washp2p-security-{os.getpid()}-{name}"


def _gather(rank: int, store: str, n: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)


def rounds(rank: int, addresses: dict[str, str], folder: str, store: str, n: int) -> Found:
    """One rank: milliseconds a round in each block, by variant."""
    _gather(rank, store, n)
    found: Found = {}
    with ExitStack() as stack:
        steps: dict[str, Callable[[], object]] = {}
        for name, address in addresses.items():
            torch.manual_seed(0)
            model = build_model(MODEL, (3, 32, 32), 10)
            optimizer = Nothing(model.parameters(), lr=0.1)
            own = Path(folder) if name == "keys" else None
            stack.enter_context(washp2p.join(address, model, optimizer, keys=own))
            steps[name] = optimizer.step
        for block in range(BLOCKS + 1):
            for name, step in steps.items():
                took, _ = timed(step, ROUNDS)
                if block:
                    found.setdefault(name, []).append(took)
    dist.destroy_process_group()
    return found


def train(rank: int, addresses: dict[str, str], folder: str, store: str, n: int) -> Found:
    """One rank: milliseconds a training step in each block, by variant."""
    _gather(rank, store, n)
    found: Found = {}
    with ExitStack() as stack:
        steps: dict[str, Callable[[], object]] = {}
        for name, address in addresses.items():
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            own = Path(folder) if name == "keys" else None
            stack.enter_context(washp2p.join(address, model, optimizer, keys=own))
            steps[name] = training(model, optimizer, 24)
        for step in steps.values():
            timed(step, 2 * STEPS)  # to settle
        for _ in range(TURNS):
            for name, step in steps.items():
                found.setdefault(name, []).append(timed(step, STEPS)[0])
    dist.destroy_process_group()
    return found


def compare(what: str, work: Callable[..., Found], n: int, *flags: str) -> list[object]:
    """A row: plain text against keys."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keys.make(Path(folder), anew=False)
        every = (f"--n={n}", f"--p={P}", *flags)
        addresses = {
            "plain": stack.enter_context(coordinator(*every)),
            "keys": stack.enter_context(coordinator(*every, f"--keys={folder}")),
        }
        found = in_processes(n, work, addresses, folder, _rendezvous(what), n)[0]
    assert isinstance(found, dict)
    ratios = [b / a for a, b in zip(found["plain"], found["keys"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return [
        what,
        n,
        f"{median(found['plain']):.3f}",
        f"{median(found['keys']):.3f}",
        f"{middle:.3f} ({low:.3f} to {high:.3f})",
        len(ratios),
    ]


# Floods


def paced(send: Callable[[], None]) -> Iterator[None]:
    """Calls `send` RATE times a second, as far as it can; yields now and then."""
    began, count = time.monotonic(), 0
    while True:
        due = round(RATE * (time.monotonic() - began))
        if due - count > RATE:  # it cannot keep up
            began, count = time.monotonic(), 0
            due = 0
        for _ in range(min(due - count, 200)):
            send()
            count += 1
        yield
        time.sleep(0.002)


def connections(endpoint: str) -> Callable[[], None]:
    """Garbage, each time over a new TCP connection: ZeroMQ closes one at the first wrong byte."""
    host, port = endpoint.removeprefix("tcp://").split(":")

    def send() -> None:
        with suppress(OSError), socket.create_connection((host, int(port)), 0.2) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            stranger.sendall(b"x" * 64)

    return send


def over_zeromq(
    endpoint: str, word: bytes, own: KeyPair | None = None, server: bytes = b""
) -> Callable[[], None]:
    """`word`, by a ZeroMQ socket; another one, with another identity, once it is read no more."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def anew() -> None:
        while sockets:
            sockets.pop().close(linger=0)
        dealer = context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        if own is not None:
            present(dealer, own, server)
        dealer.connect(endpoint)
        sockets.append(dealer)

    refused = 0

    def send() -> None:
        nonlocal refused
        try:
            sockets[0].send(word, zmq.NOBLOCK)
            refused = 0
        except zmq.Again:
            refused += 1
            if refused > RATE // 10:
                refused = 0
                anew()

    anew()
    return send


def floods(
    address: str, member: str, folder: Path, sink: str, door: str
) -> dict[str, Callable[[], None]]:
    """Whoever sends what; `sink` and `door` are the flooder's own, for messages and connections."""
    join = keys.read_join(folder)
    metrics = messages.encode(Metrics({"loss": 1.0}))
    return {
        "quiet": lambda: None,
        OWN_MESSAGES: over_zeromq(sink, b"x" * 100),
        OWN_CONNECTIONS: connections(door),
        "stranger, ZeroMQ without keys, to the coordinator": over_zeromq(address, metrics),
        "stranger, ZeroMQ without keys, to a member": over_zeromq(member, b"x" * 100),
        "stranger, a connection a message, to the coordinator": connections(address),
        "stranger, a connection a message, to a member": connections(member),
        "join key, garbage to the coordinator": over_zeromq(
            address, b"x" * 100, join.own, join.coordinator
        ),
        "join key, messages to the coordinator": over_zeromq(
            address, metrics, join.own, join.coordinator
        ),
        "join key, garbage to a member": over_zeromq(
            member, b"x" * 100, join.own, join.coordinator
        ),
    }


def flooded(rank: int, address: str, folder: str, store: str, n: int) -> Found:
    """Ranks below n are members; the last one floods one of them, or the coordinator."""
    _gather(rank, store, n + 1)
    found: Found = {}
    endpoint: list[str] = [""] * (n + 1)
    with ExitStack() as stack:
        step: Callable[[], object] = lambda: None  # noqa: E731
        if rank < n:
            torch.manual_seed(0)
            model = build_model(MODEL, (3, 32, 32), 10)
            optimizer = Nothing(model.parameters(), lr=0.1)
            member = stack.enter_context(washp2p.join(address, model, optimizer, keys=Path(folder)))
            step = optimizer.step
            endpoint[rank] = member._endpoint
        dist.all_gather_object(endpoint, endpoint[rank])
        sink: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        sink.set(zmq.LINGER, 0)
        port = sink.bind_to_random_port("tcp://127.0.0.1")
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))
        door.setblocking(False)
        every = floods(
            address,
            endpoint[0],
            Path(folder),
            f"tcp://127.0.0.1:{port}",
            f"tcp://127.0.0.1:{door.getsockname()[1]}",
        )
        for turn in range(TURNS_OF_FLOOD + 1):
            for name, send in every.items():
                dist.barrier()
                over = None
                if rank == n:
                    over = dist.barrier(async_op=True)
                    assert over is not None
                    flood = paced(send)
                    while not over.is_completed():
                        next(flood)
                        while sink.poll(0):
                            sink.recv()
                        with suppress(BlockingIOError):
                            while True:
                                door.accept()[0].close()
                    continue
                began = time.perf_counter()
                for _ in range(FLOODED):
                    step()
                took = 1e3 * (time.perf_counter() - began) / FLOODED
                dist.barrier()
                if turn:
                    found.setdefault(name, []).append(took)
    dist.destroy_process_group()
    return found


def flood() -> None:
    """Measure and record the floods."""
    n = 2
    with tempfile.TemporaryDirectory() as folder:
        keys.make(Path(folder))
        flags = (f"--n={n}", f"--p={P}", "--max-delay=0", f"--keys={folder}")
        with coordinator(*flags) as address:
            found = in_processes(n + 1, flooded, address, folder, _rendezvous("flood"), n)[0]
    assert isinstance(found, dict)
    rows = []
    for name, took in found.items():
        ratios = [b / a for a, b in zip(found["quiet"], took, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        own = OWN_CONNECTIONS if "connection" in name else OWN_MESSAGES
        beside = [b / a for a, b in zip(found[own], took, strict=True)]
        shown = f"{median(beside):.3f}" if name not in {"quiet", own} else ""
        spread = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, f"{median(took):.3f}", spread, shown])
    record(
        "flood",
        "Rounds in a flood of 10,000 messages a second",
        ["who sends what", "ms a round", "of a quiet one", "of one while it sends to itself"],
        rows,
        f"N = {n} members in lockstep with keys, {MODEL}, p = {P}, steps that do nothing, all on "
        "two cores, of which the flooding process takes its share whomever it sends to: the last "
        "column is against rounds while it sends as many messages, or opens as many connections, "
        "to a socket of its own. Who is read no more comes again under another identity. Medians "
        f"over {TURNS_OF_FLOOD} blocks in turn, with quartiles. Bar: 1.10.",
    )


def main(arguments: Sequence[str]) -> None:
    """Measure one thing and record it."""
    (what,) = arguments
    if what == "flood":
        flood()
        return
    row = {
        "rounds": lambda: compare("lockstep rounds", rounds, 4, "--max-delay=0"),
        "training": lambda: compare("training, auto", train, 2, "--max-delay=auto"),
    }[what]()
    record(
        f"keys-{what}",
        f"What keys cost: {row[0]}",
        ["what", "N", "ms, plain", "ms, with keys", "ratio", "blocks"],
        [row],
        "Rounds: ResNet-18 (11.2 M parameters), p = 0.001, schedule decreasing, steps that do "
        "nothing, on loopback; bar 1.15. Training: an MLP of 4.2 M parameters, p = 0.001, SGD with "
        "momentum, one thread a process; bar 1.01. Medians; ratios of blocks in turn, with "
        "quartiles. On the wire keys add 33 bytes to a message (tests/transports).",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
