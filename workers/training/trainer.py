"""A member's training: model, optimizer, schedule, batches. Knows nothing of peers.

The same object trains in a worker process and, beside its peers, in `washp2p simulate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from washp2p.evaluation import accuracy, probabilities, reset_batch_norm
from workers.training.augment import Augment
from workers.training.models import build_model, last_layer
from workers.training.pretrained import load_pretrained
from workers.training.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from washp2p import RunConfig
    from workers.training.data import Data

SWA_BATCHES = 200


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the data."""

    number: int
    loss: float
    """Mean training loss."""
    lr: float
    """Learning rate of the epoch's last step."""
    held_out: float
    """Accuracy on the held-out images, per cent."""
    skipped: int = 0
    """How many times an image that cannot be read was skipped so far."""

    def to_metrics(self) -> dict[str, Any]:
        """Plain values for metrics.jsonl."""
        return {
            "epoch": self.number,
            "loss": round(self.loss, 6),
            "lr": self.lr,
            "held_out": round(self.held_out, 3),
            **({"skipped_images": self.skipped} if self.skipped else {}),
        }


@dataclass
class _Pass:
    """A member's position in one pass over the data."""

    number: int
    length: int
    """Batches in the pass: all, or what was left of its peers' pass when the member joined."""
    order: torch.Tensor
    """The state of the loader's generator at the beginning of the pass."""
    loss: torch.Tensor
    """The training loss, summed over the batches taken."""
    taken: int = 0
    lr: float = 0.0


class Trainer:
    """Trains one member: SGD, Adam or AdamW, weight decay, cosine learning rate by step.

    From `swa_from` on, the learning rate is constant, and a second model is kept. It is the mean of
    the member's own models at the ends of those epochs (stochastic weight averaging; PAPA, A.11).
    """

    def __init__(self, config: RunConfig, data: Data, member: int, device: torch.device) -> None:
        self._config = config
        self._device = device
        self.streams = Streams(config.seed, member)
        with self.streams.active():
            self.model = build_model(config.training.model, data.shape, data.classes)
        if config.training.weights:
            load_pretrained(self.model, config, data.shape, data.classes)
        self.model.to(device)
        self._data = data
        self._batches = data.training_batches(config.training.batch_size, self.streams.loader)
        self.steps = config.training.epochs * len(self._batches)
        self.optimizer = _optimizer(config, self.model)
        head = {id(parameter) for parameter in last_layer(self.model)}
        self._body = [p for p in self.model.parameters() if id(p) not in head]
        self._thaws_at, self._swa_at = (
            config.steps_until(when, self.steps)
            for when in (config.training.head_first, config.training.swa_from)
        )
        self._swa: AveragedModel | None = None
        self.augmentation = config.augmentation(member)
        """How this member's batches are augmented."""
        self._augment = Augment(self.augmentation, data.shape, data.classes)
        self.round = 0
        """Steps done, by the population's clock. The caller may set it before the first step or
        after any step. So a member that joined late, or skipped rounds, goes on with the learning
        rate of its peers, and ends when they do. Its first pass over the data is as long as what is
        left of theirs."""
        self._number: int | None = None
        self._pass: _Pass | None = None

    def train(self) -> Iterator[Epoch | None]:
        """Train to the end. Yields None after each step, and then an Epoch if an epoch is over.

        Advance the iterator only while `streams` are active.
        """
        self.model.train()
        while self._pass is not None or self.round < self.steps:
            now = self._pass = self._pass or self._next_pass()
            for inputs, targets in self._rest_of(now):
                if self.round >= self.steps:
                    break
                varied, aims = self._augment(inputs, targets)
                loss = cross_entropy(
                    self.model(varied.to(self._device)),
                    aims.to(self._device),
                    label_smoothing=self.augmentation.smoothing,
                )
                self.optimizer.zero_grad()
                loss.backward()
                if self.round < self._thaws_at:
                    for parameter in self._body:
                        parameter.grad = None
                now.lr = self._learning_rate()
                for group in self.optimizer.param_groups:
                    group["lr"] = now.lr
                now.loss += loss.detach()
                now.taken += 1
                self.round += 1
                self.optimizer.step()  # its hook may ask for the `state_dict`
                yield None
            self._number, self._pass = now.number, None
            if self._swa_at < self.round < self.steps:  # of the last one see `final_state`
                self._average_own()
            held_out = self._held_out_accuracy()
            skipped = 0 if self._data.skipped is None else self._data.skipped.value
            yield Epoch(now.number, float(now.loss) / now.taken, now.lr, held_out, skipped)

    def repair_inputs(self) -> list[torch.Tensor]:
        """The batches for REPAIR: the same images for all members, in this one's augmentation.

        Call it while `streams` are active, because it draws from them.
        """
        config = self._config
        batches = self._data.first_batches(
            config.method.repair, config.training.batch_size, torch.device("cpu")
        )
        varied = [
            self._augment(inputs, torch.zeros(len(inputs), dtype=torch.int64))[0]
            for inputs in batches
        ]
        return [inputs.to(self._device) for inputs in varied]

    def final_state(self) -> dict[str, torch.Tensor] | None:
        """The state dict to average in place of the model's; None for the model's own.

        Call it once, when training is over. Under SWA the result is the mean of the member's own
        models, with batch norm statistics from SWA_BATCHES batches.
        """
        if self._swa_at >= self.steps:
            return None
        with self.streams.active():
            swa = self._average_own()
            batches = islice(self._batches, SWA_BATCHES)
            reset_batch_norm(swa, (inputs.to(self._device) for inputs, _ in batches))
        return swa.module.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The state besides model and optimizer: streams, position in the data, SWA's mean.

        It has plain values, and tensors that are not copied. The optimizer's hook calls this in the
        middle of an optimizer step; between passes it must not be called.
        """
        now = self._pass
        assert now is not None
        return {
            "streams": self.streams.state_dict(),
            "number": now.number,
            "length": now.length,
            "order": now.order,
            "loss": float(now.loss),
            "taken": now.taken,
            "lr": now.lr,
            "swa": {} if self._swa is None else self._swa.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Call it before `train`."""
        self.streams.load_state_dict(state["streams"])
        self._pass = _Pass(
            state["number"],
            state["length"],
            state["order"],
            torch.tensor(state["loss"], device=self._device),
            state["taken"],
            state["lr"],
        )
        if state["swa"]:
            self._swa = AveragedModel(self.model)
            self._swa.load_state_dict(state["swa"])

    def _next_pass(self) -> _Pass:
        length = len(self._batches)
        begun = 0
        if self._number is None:
            self._number, begun = divmod(self.round, length)
        return _Pass(
            self._number + 1,
            length - begun,
            self.streams.loader.get_state(),
            torch.zeros((), device=self._device),
        )

    def _rest_of(self, now: _Pass) -> Iterator[Any]:
        """The batches of a pass that are still to be taken."""
        self.streams.loader.set_state(now.order)
        batches = iter(self._batches)
        whole = now.length == len(self._batches)
        return islice(batches, now.taken, None if whole else now.length)

    def _learning_rate(self) -> float:
        """The next step's learning rate: a cosine from `lr` to `min_lr`; under SWA `swa_lr`."""
        if self.round >= self._swa_at:
            return self._config.training.swa_lr
        low, high = self._config.training.min_lr, self._config.training.lr
        return low + (high - low) / 2 * (1 + cos(pi * self.round / max(1, self.steps - 1)))

    def _average_own(self) -> AveragedModel:
        if self._swa is None:
            self._swa = AveragedModel(self.model)
        self._swa.update_parameters(self.model)
        return self._swa

    def _held_out_accuracy(self) -> float:
        batches = self._data.evaluation_batches(self._data.held_out)
        return accuracy(*probabilities(self.model, batches, self._device))


def _optimizer(config: RunConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    parameters, decay = model.parameters(), config.training.weight_decay
    if config.training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.training.lr, momentum=config.training.momentum, weight_decay=decay
        )
    if config.training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.training.lr, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=config.training.lr, weight_decay=decay)
