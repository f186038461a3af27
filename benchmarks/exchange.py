"""A lockstep round against all-reduce, SPARTA, hivemind and bare ZeroMQ, alternating in one run.

    python -m benchmarks.exchange

Four processes on loopback do a series of each in turn; the wall time of a series on rank 0, between
barriers, is that of all four. Nothing is trained: a step without gradients, then the round. Members
differ from the start, as they do after a step of training.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import washp2p
from benchmarks.others import HIVEMIND, Floor, Hivemind, sparta
from benchmarks.record import record, run
from tests.support.population import coordinator, gather, in_processes, rendezvous
from washp2p.model.device_copies import copies_for
from washp2p.model.flat_memory import flat_zeros
from washp2p.plan.plan import Deriver
from washp2p.protocol.rates import layer_rates
from workers.training.models import build_model

if TYPE_CHECKING:
    from collections.abc import Callable

N = 4
SETTINGS = {
    "resnet18, p = 0.001": ("resnet18", 0.001, "1", 50, 16),
    "resnet50, p = 0.05": ("resnet50", 0.05, "1", 6, 8),
    "resnet50, p = 0.05, --block 16": ("resnet50", 0.05, "16", 24, 8),
}
"""By title: model, p, `--block`; WASH rounds in a series, and series."""
PAUSE, READY = 0.1, 8
"""Seconds in which the planner derives its plans ahead; rounds for which they then last."""


def timed(work: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Milliseconds that one call takes, all ranks together; and of this process's CPU."""
    dist.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        work()
    cpu = time.process_time() - cpu
    dist.barrier()
    return 1e3 * (time.perf_counter() - began) / repeat, 1e3 * cpu / repeat


class Nothing(torch.optim.SGD):
    """An optimizer whose step costs nothing, so that what is timed is the round."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # no closures here
        """Leave the parameters as they are."""


@torch.no_grad()
def differ(rank: int, model: torch.nn.Module) -> None:
    """Change a member's parameters, as its first step would: it stops looking for its equals."""
    generator = torch.Generator().manual_seed(rank)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-3)


def work(rank: int, address: str, store: str, name: str) -> dict[str, list[tuple[float, float]]]:
    """One rank; what each series took."""
    net, p, block, rounds, repeats = SETTINGS[name]
    small = net == "resnet18"
    gather(rank, store, N)
    torch.manual_seed(0)
    model = build_model(net, (3, 32, 32), 10 if small else 1000)
    values = sum(parameter.numel() for parameter in model.parameters())
    hivemind = Hivemind(rank, N, values) if HIVEMIND and small else None
    optimizer = Nothing(model.parameters(), lr=0.1)
    found: dict[str, list[tuple[float, float]]] = {}
    with washp2p.join(address, model, optimizer) as member:
        differ(rank, model)
        layout = member.layout
        rates = layer_rates("decreasing", p, layout.layers)
        deriver = Deriver(layout, rates, N, member.id, block=block)
        plan = deriver.derive(1)
        sizes = [0] * N
        for peer, begin, end in plan.send.parts:
            sizes[peer] = 4 * (end - begin)
        ids: list[int] = [0] * N
        dist.all_gather_object(ids, member.id)
        by_rank = [sizes[i] for i in ids]
        floors = {scheme: Floor(rank, scheme, by_rank) for scheme in ("tcp", "ipc")}
        flat = flat_zeros(layout.size, torch.float32, torch.device("cpu"))
        tensors = [torch.zeros(e.shape) for e in layout.entries]
        generator = torch.Generator().manual_seed(0)
        seed = iter(range(10**9))
        plans = [deriver.derive(next(seed)) for _ in range(rounds)]
        lane, room = (
            copies_for(flat.device),
            torch.zeros(max(len(x.receive.indices) for x in plans)),
        )
        places = cycle([[lane.upload(r.indices) for r in (p.send, p.receive)] for p in plans])

        def touch() -> None:
            send, receive = next(places)
            lane.keep([flat], send)
            lane.assign([flat], receive, [room[: len(receive)]])

        def nothing() -> None:
            pass

        sides: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
            "wash": (nothing, optimizer.step, rounds),
            "plan": (nothing, lambda: deriver.derive(next(seed)), rounds),
            "gather, scatter": (nothing, touch, rounds),
            "floor tcp": (nothing, floors["tcp"].round, 200),
            "floor ipc": (nothing, floors["ipc"].round, 200),
            "all-reduce": (nothing, lambda: dist.all_reduce(flat), 1),
        }
        if small:
            sides["wash, plans ahead"] = (lambda: time.sleep(PAUSE), optimizer.step, READY)
            sides["SPARTA"] = (nothing, lambda: sparta(tensors, p, generator), 1)
        if hivemind is not None:
            sides["hivemind"] = (hivemind.prepare, hivemind.average, 1)
        for series in range(repeats + 1):
            for side, (prepare, call, repeat) in sides.items():
                prepare()
                took = timed(call, repeat)
                if series:  # the first is to get warm
                    found.setdefault(side, []).append(took)
    if hivemind is not None:
        hivemind.close()
    dist.destroy_process_group()
    return found


SIDES = (
    *("wash", "wash, plans ahead", "plan", "gather, scatter", "floor tcp", "floor ipc"),
    *("all-reduce", "SPARTA", "hivemind"),
)


def main() -> None:
    """Measure both models and record them."""
    rows = []
    for name, (net, p, block, _, repeats) in SETTINGS.items():
        store = rendezvous(f"{net}-{block}")
        flags = (f"--n={N}", f"--p={p}", f"--block={block}", "--max-delay=0")
        with coordinator(*flags) as address:
            found = in_processes(N, work, address, store, name)[0]
        assert isinstance(found, dict)
        for side in (side for side in SIDES if side in found):
            wall, cpu = (median(column) for column in zip(*found[side], strict=True))
            rows.append([name, side, f"{wall:.3f}", f"{cpu:.3f}"])
            for reference in ("wash", "wash, plans ahead"):
                if reference in found and side != reference:
                    pairs = zip(found[reference], found[side], strict=True)
                    ratios = [b / a for (a, _), (b, _) in pairs]
                    low, middle, high = quantiles(ratios, n=4)
                    rows[-1].append(f"{middle:.3g}x ({low:.3g} to {high:.3g})")
                else:
                    rows[-1].append("")
            rows[-1].append(f"{repeats}")
    hivemind = "found and measured" if HIVEMIND else "not installed here, not measured"
    record(
        "exchange",
        "A lockstep round of WASH against other exchanges",
        ["model", "what", "ms", "CPU ms", "against wash", "against wash, plans ahead", "series"],
        rows,
        f"N = {N} processes on loopback, one torch thread each, schedule decreasing, optimizer "
        "steps that do nothing. Medians; ratios of series in turn, with quartiles; CPU of one of "
        f"the {N} processes, all its threads. `wash` is "
        "a steady run of lockstep rounds: plan taken from the planner's thread, which derives the "
        "next ones meanwhile on the same cores, gather, send, receive, scatter. `wash, plans "
        f"ahead` is {READY} rounds after a pause of {PAUSE} s, as a training step would leave it; "
        "`plan` and `gather, scatter` are what these parts cost, all four at once; `floor` is "
        "bare ZeroMQ with messages of the same sizes in the same pattern; `all-reduce` and "
        "`SPARTA` (a mask broadcast and an all-reduce a tensor) are torch.distributed's gloo; "
        "`hivemind` is DecentralizedAverager without compression, finding its group not counted: "
        f"{hivemind}.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about ten minutes"))
