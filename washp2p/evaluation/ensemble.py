"""Predictions of one model, and of several together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def probabilities(
    model: torch.nn.Module, batches: Batches, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax of the `logits` (float32, samples x classes), and the labels.

    `model`, `batches` and `device` are as in `logits`.
    """
    outputs, labels = logits(model, batches, device)
    return outputs.softmax(dim=1), labels


@torch.no_grad()
def logits(
    model: torch.nn.Module, batches: Batches, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (float32, samples x classes) and labels (int64) over `batches`, on the CPU.

    `batches` are pairs of inputs (any shape that the `model` takes on `device`) and labels. The
    model is evaluated in eval mode and left in the mode it was in.

    >>> model = torch.nn.Linear(2, 3)
    >>> outputs, labels = logits(
    ...     model, [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))], torch.device("cpu")
    ... )
    >>> outputs.shape, labels.tolist()
    (torch.Size([4, 3]), [0, 0, 0, 0])
    """
    training = model.training
    model.eval()
    outputs, labels = [], []
    for inputs, targets in batches:
        outputs.append(model(inputs.to(device)).float().cpu())
        labels.append(targets)
    model.train(training)
    return torch.cat(outputs), torch.cat(labels)


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in per cent, of `outputs` (samples x classes) for `labels` (int64).

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    50.0
    """
    return 100.0 * int((outputs.argmax(dim=1) == labels).sum()) / len(labels)


def ensemble(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the members' `outputs` (each samples x classes): the papers' Ensemble.

    >>> ensemble([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    tensor([[0.5000, 0.5000]])
    """
    return torch.stack(tuple(outputs)).mean(dim=0)
