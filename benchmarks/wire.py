"""Bytes on the wire, everything counted, against payload.

    python -m benchmarks.wire

Five members, each in a network namespace of its own on one switch (as root). What a namespace's
interface has sent (Ethernet, IP and TCP headers, ZMTP, acknowledgements, control plane) over a
stretch of rounds, against the payload that the ledgers say.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

import washp2p
from benchmarks.exchange import Nothing
from benchmarks.record import record, run
from tests.support.hosts import DEVICE, enter, missing, on_a_switch, sent_bytes
from tests.support.population import coordinator, in_processes
from washp2p.protocol.ledger import Kind
from workers.training.models import build_model

N = 5
P = 0.001
ROUNDS = 300
BARS = {"decreasing": 1.20, "constant": 1.10}


def work(
    rank: int, address: str, rendezvous: str, hosts: list[str]
) -> tuple[float, float, float, float]:
    """One rank: bytes on the wire, payload, header bytes and messages of ROUNDS rounds."""
    enter(hosts[rank])
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=N)
    torch.manual_seed(0)
    model = build_model("resnet18", (3, 32, 32), 10)
    optimizer = Nothing(model.parameters(), lr=0.1)
    with washp2p.join(address, model, optimizer, insecure=True) as member:
        for _ in range(50):
            optimizer.step()
        dist.barrier()
        before, on_wire = member.ledger.total(Kind.EXCHANGE), sent_bytes()
        for _ in range(ROUNDS):
            optimizer.step()
        on_wire = sent_bytes() - on_wire
        after = member.ledger.total(Kind.EXCHANGE)
        dist.barrier()
    dist.destroy_process_group()
    return (
        on_wire,
        after.payload - before.payload,
        after.header - before.header,
        after.messages - before.messages,
    )


def main() -> None:
    """Measure both schedules and record them."""
    lacking = missing()
    if lacking:
        print(f"not measured: {lacking}")
        return
    rows = []
    for schedule, bar in BARS.items():
        with (
            on_a_switch(N) as hosts,
            coordinator(
                f"--n={N}", f"--p={P}", f"--schedule={schedule}", "--max-delay=0", host=hosts[0]
            ) as address,
        ):
            names = [name for name, _ in hosts]
            found = in_processes(N, work, address, f"tcp://{hosts[0][1]}:29500", names)
        wire, payload, header, messages = (sum(column) for column in zip(*found, strict=True))
        rows.append(
            [
                schedule,
                f"{payload / messages:.0f}",
                f"{header / messages:.1f}",
                f"{(wire - payload - header) / messages:.0f}",
                f"{wire / payload:.3f}x",
                f"{bar:.2f}x",
            ]
        )
    record(
        "wire",
        "Bytes on the wire against payload",
        ["schedule", "payload a message", "header", "everything else", "wire / payload", "bar"],
        rows,
        f"ResNet-18 (11.2 M), p = {P}, N = {N}, {ROUNDS} lockstep rounds, bytes; all that the five "
        "interfaces sent, segments as a wire has them (MTU 1500), the coordinator's host included.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about two minutes"))
