"""A member's training: model, optimizer, schedule, batches. Knows nothing of peers.

The same object trains in a worker process and, beside its peers, in `washp2p simulate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from washp2p.evaluation.ensemble import accuracy, probabilities
from workers.models import build_model
from workers.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from washp2p.config import RunConfig
    from workers.data import Data


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data gave."""

    number: int
    loss: float
    """Mean training loss."""
    lr: float
    """Learning rate of the epoch's last step."""
    held_out: float
    """Accuracy on the held-out images, per cent."""

    def to_metrics(self) -> dict[str, Any]:
        """Plain values for metrics.jsonl."""
        return {
            "epoch": self.number,
            "loss": round(self.loss, 6),
            "lr": self.lr,
            "held_out": round(self.held_out, 3),
        }


class Trainer:
    """One member: SGD with momentum and weight decay, cosine learning rate by step."""

    def __init__(self, config: RunConfig, data: Data, member: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self.streams = Streams(config.seed, member)
        with self.streams.active():
            self.model = build_model(config.model, data.shape, data.classes).to(device)
        self._data = data
        self._batches = data.training_batches(config.batch_size, self.streams.loader)
        self.steps = config.epochs * len(self._batches)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.round = 0
        """Steps done, by the population's clock. Who knows better sets it, before the first step or
        after one: a member that came late, or jumped, goes on with the learning rate of its peers,
        and ends when they do. Its first pass over the data is as long as what is left of theirs."""

    def train(self) -> Iterator[Epoch | None]:
        """Train to the end: yields None after each step, and the Epoch after its last.

        To be advanced while `streams` are active.
        """
        self.model.train()
        length = len(self._batches)
        number, begun = divmod(self.round, length)
        while self.round < self.steps:
            number += 1
            total = torch.zeros((), device=self._device)
            taken = 0
            for inputs, targets in self._batches:
                loss = cross_entropy(self.model(inputs.to(self._device)), targets.to(self._device))
                self.optimizer.zero_grad()
                loss.backward()
                lr = self._learning_rate()
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
                total += loss.detach()
                taken += 1
                self.round += 1
                yield None
                if self.round >= self.steps or (begun and begun + taken == length):
                    break
            begun = 0
            yield Epoch(number, float(total) / taken, lr, self._held_out_accuracy())

    def _learning_rate(self) -> float:
        """Of the next step: a cosine from `lr` at the first to `min_lr` at the last."""
        low, high = self._config.min_lr, self._config.lr
        return low + (high - low) / 2 * (1 + cos(pi * self.round / max(1, self.steps - 1)))

    def _held_out_accuracy(self) -> float:
        batches = self._data.evaluation_batches(self._data.held_out)
        return accuracy(*probabilities(self.model, batches, self._device))
