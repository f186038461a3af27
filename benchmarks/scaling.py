"""What grouping does to large populations: digits, up to 256 members in one process.

    python -m benchmarks.scaling

Members are rows of one matrix and train together; each has its own Deriver, and what its plan says
it receives is what it gets. Resumes: finished cells are kept in runs/scaling/.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.record import kept, record, run
from washp2p.config.config import RunConfig
from washp2p.model.store import Store
from washp2p.plan.plan import Deriver
from washp2p.protocol.rates import layer_rates
from washp2p.protocol.roster import round_seed, run_key
from workers.training.data import load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import Dataset

SIZES = {8: (0, 2, 4), 32: (0, 2, 4, 7), 128: (0, 2, 4, 7), 256: (0, 4)}
"""By N: the largest group, 0 for all in one."""
SEEDS = range(2)
P, EPOCHS, BATCH, LR = 0.05, 12, 32, 0.1
WIDTHS = (64, 32, 32, 32, 10)
CELLS = Path("runs/scaling")


class Members:
    """N multilayer perceptrons: `flat` has a row each, laid out as a store would."""

    def __init__(self, n: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(WIDTHS)))
        store = Store(model, torch.optim.SGD(model.parameters(), lr=LR))
        self.layout = store.layout
        row = store.vector
        self.flat = row.repeat(n, 1).requires_grad_()
        self._momentum = torch.zeros_like(self.flat)

    def logits(self, inputs: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """Of shape (rows, images, 10), for `inputs` of shape (rows, images, 64)."""
        entries = self.layout.entries
        for weight, bias in zip(entries[::2], entries[1::2], strict=True):
            matrix = flat[:, weight.offset : weight.offset + weight.size]
            matrix = matrix.unflatten(1, weight.shape)
            add = flat[:, None, bias.offset : bias.offset + bias.size]
            inputs = inputs @ matrix.transpose(1, 2) + add
            if bias is not entries[-1]:
                inputs = inputs.relu()
        return inputs

    def step(self, inputs: torch.Tensor, targets: torch.Tensor, lr: float) -> None:
        """A step of SGD with momentum for everyone, each on its own batch."""
        loss = cross_entropy(self.logits(inputs, self.flat).flatten(0, 1), targets.flatten())
        (gradient,) = torch.autograd.grad(loss * len(self.flat), self.flat)
        with torch.no_grad():
            self._momentum.mul_(0.9).add_(gradient)
            self.flat.sub_(self._momentum, alpha=lr)

    def shuffle(self, derivers: list[Deriver], seed: int) -> int:
        """A round of everyone; how many messages it took."""
        places, sources, targets = [], [], []
        messages = 0
        for member, deriver in enumerate(derivers):
            route = deriver.derive(seed).receive
            messages += len(route.parts)
            places.append(route.indices)
            targets.append(np.full(len(route.indices), member))
            for peer, begin, end in route.parts:
                sources.append(np.full(end - begin, peer))
        if not sources:
            return 0
        i, s, t = (torch.from_numpy(np.concatenate(x)) for x in (places, sources, targets))
        with torch.no_grad():
            self.flat[t, i] = self.flat[s, i]
        return messages

    def consensus(self) -> float:
        """Mean L2 distance of a member from the mean."""
        rows = self.flat.detach()
        return float((rows - rows.mean(0)).norm(dim=1).mean())


def _items(dataset: Dataset[Any]) -> Iterator[tuple[torch.Tensor, ...]]:
    assert isinstance(dataset, TensorDataset)
    return (dataset[k] for k in range(len(dataset)))


def cell(n: int, group: int | None, seed: int) -> dict[str, float]:
    """One population; `group` None trains apart."""
    torch.set_num_threads(1)
    data = load_data(RunConfig.resolve(n=2, seed=seed), Path("data"), download=False)
    images, labels = (torch.stack(column) for column in zip(*_items(data.train), strict=True))
    held, truth = (torch.stack(column) for column in zip(*_items(data.test), strict=True))
    images, held = images.flatten(1), held.flatten(1)
    members = Members(n)
    rates = layer_rates("decreasing", P, members.layout.layers)
    derivers = []
    if group is not None:
        derivers = [Deriver(members.layout, rates, n, member, group=group) for member in range(n)]
    generator = torch.Generator().manual_seed(seed)
    key = run_key(seed)
    batches = len(images) // BATCH
    rounds = EPOCHS * batches
    messages = 0
    for number in range(1, rounds + 1):
        if (number - 1) % batches == 0:
            orders = [torch.randperm(len(images), generator=generator) for _ in range(n)]
        at = (number - 1) % batches * BATCH
        chosen = torch.stack(orders)[:, at : at + BATCH]
        lr = LR / 2 * (1 + cos(pi * (number - 1) / (rounds - 1)))
        members.step(images[chosen], labels[chosen], lr)
        messages += members.shuffle(derivers, round_seed(key, number))
    with torch.no_grad():
        flat = members.flat
        outputs = members.logits(held.expand(n, -1, -1), flat).softmax(2)
        averaged = members.logits(held[None], flat.double().mean(0).float()[None])[0]
    right = outputs.argmax(2).eq(truth).double().mean(1)
    return {
        "members": 100 * float(right.mean()),
        "ensemble": 100 * float(outputs.mean(0).argmax(1).eq(truth).double().mean()),
        "averaged": 100 * float(averaged.argmax(1).eq(truth).double().mean()),
        "consensus": members.consensus(),
        "messages": messages / n / rounds,
    }


def main() -> None:
    """Run what is missing and record the table."""
    rows = []
    for n, groups in SIZES.items():
        for group in (*groups, None):
            found = [
                kept(CELLS / f"{n}-{group}-{seed}.json", partial(cell, n, group, seed))
                for seed in SEEDS
            ]
            column = {key: mean(one[key] for one in found) for key in found[0]}
            rows.append(
                [
                    n,
                    "apart" if group is None else group or "all",
                    f"{column['messages']:.1f}",
                    *(f"{column[key]:.2f}" for key in ("members", "ensemble", "averaged")),
                    f"{column['consensus']:.3f}",
                ]
            )
    record(
        "scaling",
        "Groups in large populations",
        [
            *("N", "group", "messages a member and round"),
            *("mean member", "Ensemble", "Averaged", "distance to consensus"),
        ],
        rows,
        f"Digits, an MLP of {WIDTHS} units, p = {P} (decreasing), {EPOCHS} epochs, batch {BATCH}, "
        f"SGD with momentum, cosine from {LR}; means over {len(SEEDS)} seeds, accuracies in per "
        "cent of 360 test images. Group: at most so many members, dealt anew each round. Apart: no "
        "shuffling. Distance to consensus: mean L2 distance of a member from the mean.",
    )


if __name__ == "__main__":
    sys.exit(run(main, takes="hours"))
