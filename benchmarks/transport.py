"""What a wire carries: tcp, ipc and gloo, beside the bare floor of each.

    python -m benchmarks.transport

Two processes on this machine; in a round each sends the other a payload and takes one. Wires take
turns in blocks in the same processes, and ratios are of such turns.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.exchange import timed
from benchmarks.record import record, run
from tests.support.population import gather, in_processes, rendezvous
from washp2p.protocol.ledger import Kind
from washp2p.transports.listening import listen
from washp2p.transports.locality import near_address

SIZES = {1000: 2000, 10_000: 2000, 100_000: 500, 1_000_000: 60, 10_000_000: 6, 100_000_000: 1}
"""Bytes of a payload, rounds in a block."""
BLOCKS = 15
HEADER = bytes(28)
SCHEMES = {"tcp": "tcp", "ipc": "ipc", "gloo": "torch"}
WIRES = ("bare tcp", "tcp", "bare ipc", "ipc", "bare gloo", "gloo")

Round = Callable[[memoryview], None]


def ours(rank: int, wire: str, stack: ExitStack) -> Round:
    """A round over a transport of ours."""
    scheme = SCHEMES[wire]
    address = {
        "tcp": "tcp://127.0.0.1:*",
        "ipc": near_address(),
        "torch": "torch://127.0.0.1:*/cpu",
    }
    transport = listen(address[scheme])
    stack.callback(transport.close)
    addresses = [""] * 2
    dist.all_gather_object(addresses, transport.endpoint)
    transport.connect(1 - rank, addresses[1 - rank])

    def once(payload: memoryview) -> None:
        if scheme == "torch":
            values = torch.frombuffer(payload, dtype=torch.uint8).clone()  # as lanes pick them
            transport.send(1 - rank, Kind.EXCHANGE, HEADER, [values])
        else:
            transport.send(1 - rank, Kind.EXCHANGE, HEADER, [payload])
        assert transport.receive(60) is not None

    return once


def bare(rank: int, scheme: str, stack: ExitStack) -> Round:
    """A round over one socket, whose sender is a thread if that does not take it all at once."""
    family = socket.AF_INET if scheme == "tcp" else socket.AF_UNIX
    address: Any = ("127.0.0.1", 0) if scheme == "tcp" else f"\0floor-{os.getpid()}"
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()
        addresses: list[Any] = [None, None]
        dist.all_gather_object(addresses, server.getsockname())
        if rank:
            wire, _ = server.accept()
        else:
            wire = socket.socket(family)
            wire.connect(addresses[1])
    stack.enter_context(wire)
    if scheme == "tcp":
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = memoryview(bytearray(max(SIZES)))

    def take(count: int) -> None:
        had = 0
        while had < count:
            had += wire.recv_into(room[had:count])

    def once(payload: memoryview) -> None:
        if payload.nbytes <= 10_000:
            wire.sendall(payload)
            take(payload.nbytes)
            return
        sender = threading.Thread(target=wire.sendall, args=(payload,))
        sender.start()
        take(payload.nbytes)
        sender.join()

    return once


def gloo(rank: int) -> Round:
    """A round of `torch.distributed`'s own point-to-point operations."""
    room = torch.empty(max(SIZES), dtype=torch.uint8)

    def once(payload: memoryview) -> None:
        out = torch.frombuffer(payload, dtype=torch.uint8)
        operations = [
            dist.P2POp(dist.isend, out, 1 - rank, tag=rank),
            dist.P2POp(dist.irecv, room[: payload.nbytes], 1 - rank, tag=1 - rank),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return once


def measure(rank: int, store: str) -> dict[tuple[str, int], list[float]]:
    """One rank: microseconds a round in each block."""
    gather(rank, store, 2)
    found: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        wires = {"bare gloo": gloo(rank)}
        for scheme in ("tcp", "ipc"):
            wires[f"bare {scheme}"] = bare(rank, scheme, stack)
        for wire in SCHEMES:
            wires[wire] = ours(rank, wire, stack)
        for size, repeat in SIZES.items():
            payload = memoryview(bytearray(size))
            for block in range(BLOCKS + 1):
                for name in WIRES:
                    took, _ = timed(partial(wires[name], payload), repeat)
                    if block:
                        found.setdefault((name, size), []).append(1e3 * took)
    dist.destroy_process_group()
    return found


def main() -> None:
    """Measure and record."""
    found = in_processes(2, measure, rendezvous("transport"))[0]
    assert isinstance(found, dict)
    rows = []
    for size in SIZES:
        for name in WIRES:
            took = found[name, size]
            ratio = ""
            if name in SCHEMES:
                pairs = zip(took, found[f"bare {name}", size], strict=True)
                ratio = f"{median(a / b for a, b in pairs):.2f}"
            against = [a / b for a, b in zip(took, found["tcp", size], strict=True)]
            rows.append(
                [
                    f"{size:,}",
                    name,
                    f"{median(took):,.0f}",
                    f"{size / median(took):,.1f}",
                    ratio,
                    f"{median(against):.2f}",
                ]
            )
    record(
        "transport",
        "What a wire carries",
        ["bytes", "wire", "µs a round", "MB/s each way", "of its floor", "of tcp"],
        rows,
        "Two processes on one machine, one thread each; in a round each sends the other so many "
        "bytes and takes as many. `bare` is one socket, or gloo's batch_isend_irecv, and knows the "
        f"length beforehand. Medians over {BLOCKS} blocks in turn.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="a few minutes"))
