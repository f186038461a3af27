"""What it costs to look at every parameter once a round: pointer, strides, size, dtype, object.

    python -m benchmarks.look

On the training thread, before anything of a round is read or written. No step is taken meanwhile,
so nothing has moved: the usual case.
"""

from __future__ import annotations

import sys
import timeit
from statistics import median

import torch

from benchmarks.record import record, run
from washp2p.model.optimizer_slots import optimizer_slots
from washp2p.model.store import Store
from workers.training.models import build_model

CALLS, BLOCKS = 1000, 30


def microseconds(model: str, *, opt: bool) -> tuple[int, float, float]:
    """How many parameters there are; of blocks in turn the quickest and the median, a call."""
    torch.manual_seed(0)
    net = build_model(model, (3, 32, 32), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    store = Store(net, optimizer, optimizer_slots(optimizer) if opt else ())
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    store.refresh()  # takes in what the optimizer has made
    took = [t / CALLS * 1e6 for t in timeit.repeat(store.refresh, number=CALLS, repeat=BLOCKS)]
    return len(store.layout.entries), min(took), median(took)


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    rows = []
    for model in ("cnn", "resnet18", "resnet50"):
        for opt in (False, True):
            count, least, middle = microseconds(model, opt=opt)
            method = "wash-opt (momentum, too)" if opt else "wash"
            rows.append([model, method, count, f"{least:.1f}", f"{middle:.1f}"])
    record(
        "look",
        "Looking at every parameter, once a round",
        ["model", "method", "parameters", "µs, quickest block", "µs, median block"],
        rows,
        f"{BLOCKS} blocks of {CALLS} calls. The bar is 25 µs and 3 % of a lockstep round for "
        "ResNet-18 and `wash`; such a round takes about 2.1 ms (`python -m benchmarks.exchange`).",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="seconds"))
