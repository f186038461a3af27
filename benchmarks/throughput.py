"""What rounds cost training: optimizer steps a second of WASH against training apart.

    python -m benchmarks.throughput

Two processes of one thread train all variants in turn, block by block: on loopback, and (as root)
in two network namespaces 50 ms apart, a round trip of 100 ms.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from statistics import median, quantiles
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

import washp2p
from benchmarks.record import record, run
from tests.support.hosts import DEVICE, enter, far_apart, missing
from tests.support.population import coordinator, in_processes

if TYPE_CHECKING:
    from collections.abc import Callable

N = 2
P = 0.001
APART = 0.05
"""Seconds from host to host."""
ALL_REDUCE_EVERY = 10
MEMBERS = {
    "none": ("--method=none",),
    "auto": ("--max-delay=auto",),
    "lockstep": ("--max-delay=0",),
}
SETTINGS = {
    "loopback, short steps": (24, 100, 16, 0.0),
    "loopback, long steps": (900, 10, 12, 0.0),
    "50 ms apart, short steps": (24, 100, 16, APART),
}
"""Batch size (for steps of 10 to 20 ms, or 200 ms), steps in a block, blocks, seconds apart."""


def mlp() -> nn.Module:
    """4.2 million parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    )


def training(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> Callable[[], None]:
    """One training step on random images."""
    inputs, targets = torch.randn(batch, 3072), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


class AllReduce(torch.optim.SGD):
    """Averages all parameters by all-reduce after every tenth step, as PAPA-all does."""

    steps = 0

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # no closures here
        """One step of SGD."""
        super().step()
        self.steps += 1
        if self.steps % ALL_REDUCE_EVERY == 0:
            parameters = [p.detach() for group in self.param_groups for p in group["params"]]
            flat = torch.cat([p.view(-1) for p in parameters])
            dist.all_reduce(flat)
            for p, new in zip(
                parameters, flat.div_(N).split([p.numel() for p in parameters]), strict=True
            ):
                p.view(-1).copy_(new)


def work(
    rank: int, addresses: dict[str, str], rendezvous: str, hosts: list[str], setting: str
) -> dict[str, list[float]]:
    """One rank: by variant, seconds a step in each block, the slower rank's."""
    batch, steps, blocks, apart = SETTINGS[setting]
    if hosts:
        enter(hosts[rank])
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE if hosts else "lo"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=N)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        variants, members = {}, {}
        for name, address in addresses.items():
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            member = washp2p.join(address, model, optimizer, insecure=bool(hosts))
            members[name] = stack.enter_context(member)
            variants[name] = training(model, optimizer, batch)
        model = mlp()
        all_reduce = AllReduce(model.parameters(), lr=0.01, momentum=0.9)
        variants["all-reduce"] = training(model, all_reduce, batch)
        for _ in range(2 * steps if apart else steps):  # to settle
            variants["auto"]()
        for block in range(blocks + 1):
            for name, step in variants.items():
                few = apart and name in {"lockstep", "all-reduce"}
                count = ALL_REDUCE_EVERY if few else steps
                dist.barrier()
                began = time.perf_counter()
                for _ in range(count):
                    step()
                took = torch.tensor((time.perf_counter() - began) / count)
                dist.all_reduce(took, dist.ReduceOp.MAX)
                if block:
                    found.setdefault(name, []).append(float(took))
        found["S"] = [float(members["auto"].max_delay)]
    dist.destroy_process_group()
    return found


def measure(setting: str) -> list[list[str]]:
    """The rows of one setting."""
    apart = SETTINGS[setting][3]
    with ExitStack() as stack:
        hosts = stack.enter_context(far_apart(apart)) if apart else []
        addresses = {
            name: stack.enter_context(
                coordinator(f"--n={N}", f"--p={P}", *flags, host=hosts[0] if hosts else None)
            )
            for name, flags in MEMBERS.items()
        }
        if hosts:
            rendezvous = f"tcp://{hosts[0][1]}:29500"
        else:
            name = setting.replace(" ", "-").replace(",", "")
            rendezvous = f"file:///tmp/throughput-{os.getpid()}-{name}"
        names = [name for name, _ in hosts]
        found = in_processes(N, work, addresses, rendezvous, names, setting)[0]
    assert isinstance(found, dict)
    rows = []
    for name in ("none", "auto", "lockstep", "all-reduce"):
        ratios = [a / b for a, b in zip(found["none"], found[name], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        settled = f"{found['S'][0]:.0f}" if name == "auto" else ""
        spread = "" if name == "none" else f"{middle:.3f} ({low:.3f} to {high:.3f})"
        rows.append([setting, name, f"{1e3 * median(found[name]):.1f}", spread, settled])
    return rows


def main() -> None:
    """Measure all settings and record them."""
    rows = []
    lacking = missing()
    for setting, (*_, apart) in SETTINGS.items():
        if apart and lacking:
            rows.append([setting, "not measured: " + lacking, "", "", ""])
        else:
            rows += measure(setting)
    record(
        "throughput",
        "What rounds cost training",
        ["where", "variant", "ms a step", "steps a second, of none's", "S settled on"],
        rows,
        f"N = {N} processes of one thread, an MLP of 4.2 M parameters, SGD with momentum, p = {P}; "
        "medians of blocks in turn, the slower process's, with quartiles. `all-reduce` averages "
        f"all parameters by gloo every {ALL_REDUCE_EVERY} steps. Apart: two network namespaces, "
        f"every packet held {1e3 * APART:.0f} ms in a relay.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="about half an hour"))
