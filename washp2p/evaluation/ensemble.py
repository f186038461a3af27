"""Predictions of one model and of several together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def probabilities(
    model: torch.nn.Module, batches: Batches, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax outputs (float32, samples x classes) and labels (int64) over `batches`, on the CPU.

    The model is evaluated in eval mode and left in the mode it was in.
    """
    training = model.training
    model.eval()
    outputs, labels = [], []
    for inputs, targets in batches:
        outputs.append(model(inputs.to(device)).float().softmax(dim=1).cpu())
        labels.append(targets)
    model.train(training)
    return torch.cat(outputs), torch.cat(labels)


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in per cent."""
    return 100.0 * int((outputs.argmax(dim=1) == labels).sum()) / len(labels)


def ensemble(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The members' mean probabilities: the Ensemble of the papers' tables."""
    return torch.stack(tuple(outputs)).mean(dim=0)
