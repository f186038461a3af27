"""What rounds cost on a GPU: four members on one device, training apart, in lockstep, and auto.

    python -m benchmarks.gpu

Needs a CUDA device; says so and ends with 0 where there is none.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import washp2p
from benchmarks.record import record, run
from benchmarks.throughput import MEMBERS
from tests.support.population import coordinator, gather, in_processes, rendezvous
from washp2p.model.device_copies import copies_for
from washp2p.plan.plan import Deriver
from washp2p.protocol.rates import layer_rates
from workers.training.models import build_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.protocol.layout import Layout

N = 4
P = 0.001
MODELS = {"resnet18": 256, "resnet50": 64}
"""Batch size by model; images of 32x32, bf16 autocast, channels_last."""
STEPS, BLOCKS = 40, 8
SYNCHRONISING = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaMemcpy",
    "cudaEventSynchronize",
)
"""Calls of the CUDA runtime that make the host wait."""


class Training:
    """One variant of one member: model, optimizer, a step."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        model = build_model(name, (3, 32, 32), 10).to(device).to(memory_format=torch.channels_last)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        batch = MODELS[name]
        self._inputs = torch.randn(batch, 3, 32, 32, device=device).to(
            memory_format=torch.channels_last
        )
        self._targets = torch.randint(10, (batch,), device=device)

    def step(self) -> None:
        """Forward, backward, optimizer, and the round behind it."""
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = cross_entropy(self.model(self._inputs), self._targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def calls_that_wait(training: Training) -> Counter[str]:
    """Calls by which the host waited for the device in ten steps, by name."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(10):
            training.step()
    return Counter({e.key: e.count for e in trace.key_averages() if e.key in SYNCHRONISING})


def device_time(work: Callable[[], object]) -> float:
    """Microseconds by which `work` holds up the training stream, by CUDA events."""
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return 1e3 * float(before.elapsed_time(after))


def gather_and_scatter(layout: Layout, device: torch.device) -> tuple[float, float]:
    """Median microseconds of one round's gather, and of its scatter."""
    deriver = Deriver(layout, layer_rates("decreasing", P, layout.layers), N, 0)
    lane = copies_for(device)
    flat = [torch.zeros(layout.size, device=device)]
    staging = lane.staging([torch.float32])
    took = []
    for seed in range(30):
        plan = deriver.derive(seed)
        send, receive = lane.upload(plan.send.indices), lane.upload(plan.receive.indices)
        values = staging.take(len(send))
        took.append(
            (
                device_time(partial(lane.gather, flat, send, values)),
                device_time(partial(lane.assign, flat, receive, values)),
            )
        )
    gather, scatter = (median(column) for column in zip(*took, strict=True))
    return gather, scatter


def work(rank: int, addresses: dict[str, str], store: str, name: str) -> dict[str, object]:
    """One rank: by variant, milliseconds a step in each block, the slowest rank's."""
    gather(rank, store, N)
    device = torch.device("cuda")
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        variants, members = {}, {}
        for variant, address in addresses.items():
            variants[variant] = training = Training(name, device)
            members[variant] = stack.enter_context(
                washp2p.join(address, training.model, training.optimizer)
            )
        for block in range(BLOCKS + 1):
            for variant, training in variants.items():
                torch.cuda.synchronize()
                dist.barrier()
                began = time.perf_counter()
                for _ in range(STEPS):
                    training.step()
                torch.cuda.synchronize()
                took = torch.tensor(1e3 * (time.perf_counter() - began) / STEPS)
                dist.all_reduce(took, dist.ReduceOp.MAX)
                if block:
                    found.setdefault(variant, []).append(float(took))
        settled = members["auto"].max_delay
        waits = {}
        for variant, training in variants.items():
            dist.barrier()
            waits[variant] = dict(calls_that_wait(training))
        dist.barrier()
        kernels = gather_and_scatter(members["auto"].layout, device)
    dist.destroy_process_group()
    return {"ms": found, "S": settled, "waits": waits, "kernels": kernels}


def main() -> int:
    """Measure both models and record them."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 0
    rows = []
    for name, batch in MODELS.items():
        with ExitStack() as stack:
            addresses = {
                variant: stack.enter_context(coordinator(f"--n={N}", f"--p={P}", *flags))
                for variant, flags in MEMBERS.items()
            }
            found = in_processes(N, work, addresses, rendezvous(name), name)[0]
        assert isinstance(found, dict)
        for variant, blocks in found["ms"].items():
            ratios = [b / a for a, b in zip(found["ms"]["none"], blocks, strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            waits = ", ".join(f"{k} {v}" for k, v in found["waits"][variant].items()) or "none"
            rows.append(
                [
                    f"{name}, batch {batch}",
                    variant,
                    f"{median(blocks):.2f}",
                    f"{middle:.4f} ({low:.4f} to {high:.4f})",
                    waits,
                    found["S"] if variant == "auto" else "",
                ]
            )
        gather, scatter = found["kernels"]
        rows.append(
            [f"{name}, batch {batch}", "gather, scatter", f"{gather:.0f}, {scatter:.0f} us"]
        )
        rows[-1] += [""] * 3
    record(
        "gpu",
        "What rounds cost on a GPU",
        ["model", "variant", "ms a step", "against none", "host waits in 10 steps", "S"],
        rows,
        f"N = {N} members on one {torch.cuda.get_device_name()}, 32x32 images, bf16 autocast, "
        f"channels_last, SGD with momentum, p = {P}, ZeroMQ over loopback; blocks of {STEPS} "
        "steps in turn, the slowest member's, medians with quartiles. Bar: auto within 1 % of "
        "none. Host waits: calls in a profiler trace by which the host waited for the device. "
        "gather, scatter: by CUDA events around them.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, takes="about five minutes"))
