"""What a flood does: rounds while somebody sends what is to be refused.

    python -m benchmarks.flood

Kinds of flood take turns in blocks in the same processes, and ratios are of such turns.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch.distributed as dist
import zmq

from benchmarks.record import record, run
from benchmarks.security import MODEL, Found, P, bare
from tests.support.population import coordinator, gather, in_processes, rendezvous
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_worker import Metrics
from washp2p.sockets import keys
from washp2p.sockets.curve_auth import present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from washp2p.sockets.keys import KeyPair

RATE = 10_000
"""Messages a second of a flood."""
ROUNDS, BLOCKS = 600, 14
"""Rounds in a block, blocks."""
OWN_MESSAGES, OWN_CONNECTIONS = (
    "as many messages to a socket of its own",
    "as many connections to a socket of its own",
)


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
        time.sleep(0.002)  # the pace


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
    gather(rank, store, n + 1)
    found: Found = {}
    endpoint: list[str] = [""] * (n + 1)
    with ExitStack() as stack:
        if rank < n:
            member, step = bare(address, Path(folder))
            stack.enter_context(member)
            endpoint[rank] = member._lifecycle.around.endpoint
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
        for turn in range(BLOCKS + 1):
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
                for _ in range(ROUNDS):
                    step()
                took = 1e3 * (time.perf_counter() - began) / ROUNDS
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
            found = in_processes(n + 1, flooded, address, folder, rendezvous("flood"), n)[0]
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
        f"over {BLOCKS} blocks in turn, with quartiles. Bar: 1.10.",
    )


if __name__ == "__main__":
    sys.exit(run(flood, takes="about ten minutes"))
