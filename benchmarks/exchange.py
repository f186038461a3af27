"""A lockstep round against all-reduce, SPARTA, hivemind and bare ZeroMQ, alternating in one run.

    python -m benchmarks.exchange

Four processes on loopback do blocks of each in turn; the wall time of a block on rank 0, between
barriers, is that of all four. Nothing is trained: a step without gradients, then the round.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import zmq

import washp2p
from benchmarks.population import coordinator, in_processes
from benchmarks.record import record
from washp2p.plan import Deriver
from washp2p.rates import layer_rates
from workers.models import build_model

if TYPE_CHECKING:
    from collections.abc import Callable

N = 4
SETTINGS = {"resnet18": (0.001, 50, 12), "resnet50": (0.05, 6, 8)}
"""By model: p, WASH rounds in a block, blocks."""


def timed(work: Callable[[], object], repeat: int) -> float:
    """Milliseconds that one call takes, all ranks together."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    dist.barrier()
    return 1e3 * (time.perf_counter() - began) / repeat


class Floor:
    """Bare ZeroMQ: messages of a round's sizes in its pattern, and nothing else."""

    def __init__(self, rank: int, scheme: str, sizes: list[int]) -> None:
        context = zmq.Context.instance()
        self._pull = context.socket(zmq.PULL)
        address = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc:///tmp/floor-{os.getpid()}"
        self._pull.bind(address)
        endpoints: list[str] = [""] * N
        dist.all_gather_object(endpoints, self._pull.get_string(zmq.LAST_ENDPOINT))
        self._peers = []
        for peer, endpoint in enumerate(endpoints):
            if peer != rank:
                push = context.socket(zmq.PUSH)
                push.connect(endpoint)
                self._peers.append((push, bytes(sizes[peer])))

    def round(self) -> None:
        """Send one message to each peer, take one of each."""
        for push, message in self._peers:
            push.send(message)
        for _ in self._peers:
            self._pull.recv()


def sparta(parameters: list[torch.Tensor], p: float, generator: torch.Generator) -> None:
    """One exchange of SPARTA: for every tensor a mask from rank 0, then an all-reduce of it."""
    for parameter in parameters:
        mask = torch.rand(parameter.shape, generator=generator) < p
        dist.broadcast(mask, 0)
        values = parameter[mask]
        dist.all_reduce(values)
        parameter[mask] = values / N


def work(rank: int, address: str, store: str, name: str) -> dict[str, list[float]]:
    """One rank; what each block took."""
    p, rounds, blocks = SETTINGS[name]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=N)
    torch.manual_seed(0)
    model = build_model(name, (3, 32, 32), 10 if name == "resnet18" else 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: dict[str, list[float]] = {}
    with washp2p.join(address, model, optimizer) as member:
        layout = member.layout
        deriver = Deriver(layout, layer_rates("decreasing", p, layout.layers), N, member.id)
        plan = deriver.derive(1)
        sizes = [0] * N
        for peer, begin, end in plan.send.parts:
            sizes[peer] = 4 * (end - begin)
        ids: list[int] = [0] * N
        dist.all_gather_object(ids, member.id)
        by_rank = [sizes[i] for i in ids]
        floors = {scheme: Floor(rank, scheme, by_rank) for scheme in ("tcp", "ipc")}
        flat = torch.zeros(layout.values)
        tensors = [torch.zeros(e.shape) for e in layout.entries]
        generator = torch.Generator().manual_seed(0)
        seed = iter(range(10**9))
        sides: dict[str, tuple[Callable[[], object], int]] = {
            "wash": (optimizer.step, rounds),
            "plan": (lambda: deriver.derive(next(seed)), rounds),
            "floor tcp": (floors["tcp"].round, 200),
            "floor ipc": (floors["ipc"].round, 200),
            "all-reduce": (lambda: dist.all_reduce(flat), 1),
        }
        if name == "resnet18":
            sides["SPARTA"] = (lambda: sparta(tensors, p, generator), 1)
        for side, (call, repeat) in sides.items():
            timed(call, min(repeat, 20))
            found[side] = []
        for _ in range(blocks):
            for side, (call, repeat) in sides.items():
                found[side].append(timed(call, repeat))
        found["values"] = [float(len(plan.send.indices))]
        found["d"] = [float(layout.values)]
    dist.destroy_process_group()
    return found


def main() -> None:
    """Measure both models and record them."""
    rows = []
    for name, (p, _, blocks) in SETTINGS.items():
        store = f"/tmp/washp2p-benchmark-{os.getpid()}-{name}"
        with coordinator(f"--n={N}", f"--p={p}", "--max-delay=0") as address:
            found = in_processes(N, work, address, store, name)[0]
        assert isinstance(found, dict)
        wash = found["wash"]
        for side in ("wash", "plan", "floor tcp", "floor ipc", "all-reduce", "SPARTA"):
            if side not in found:
                continue
            ratios = [b / a for a, b in zip(wash, found[side], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            rows.append(
                [
                    f"{name}, {found['d'][0] / 1e6:.1f} M, p = {p}",
                    side,
                    f"{median(found[side]):.3f}",
                    f"{median(ratios):.3g}x",
                    f"{low:.3g} to {high:.3g}",
                    f"{blocks}",
                ]
            )
    hivemind = "installed" if find_spec("hivemind") else "not installed here, not measured"
    record(
        "exchange",
        "A lockstep round of WASH against other exchanges",
        ["model", "what", "ms, median", "against wash, median", "quartiles", "blocks"],
        rows,
        f"N = {N} processes on loopback, one torch thread each, schedule decreasing. `wash` is a "
        "whole lockstep round (optimizer hook, plan taken from the planner's thread, which derives "
        "the next ones meanwhile on the same cores, gather, send, receive, scatter); `plan` is "
        "what deriving one costs, all four at once; `floor` is bare ZeroMQ with messages of the "
        "same sizes in the same pattern; `all-reduce` and `SPARTA` (a mask broadcast and an "
        f"all-reduce a tensor) are torch.distributed's gloo. hivemind: {hivemind}.",
    )


if __name__ == "__main__":
    sys.exit(main())
