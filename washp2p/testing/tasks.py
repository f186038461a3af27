"""What simulated members train: something tiny, the same in each repetition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from washp2p.protocol.roster import MemberId


class Task(Protocol):
    """A model and its steps. Both follow from the member and the step alone."""

    def make(self, member: MemberId) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A new model of `member`, and its optimizer."""

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, member: MemberId, number: int
    ) -> None:
        """Take the member's own step `number`, counted from 1."""


def spoil(model: nn.Module) -> None:
    """Make the model one that has diverged: no parameter is a number."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))


class ToyTask:
    """Three layers and a buffer of running means, pulled to and fro by drawn gradients."""

    def __init__(self, *, optimizer: str = "sgd") -> None:
        self._optimizer = optimizer

    def make(self, member: MemberId) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A model of 65 parameters in four tensors, and SGD with momentum or AdamW."""
        model = nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 5, bias=False)
        )
        model.append(nn.Linear(5, 1, bias=False))
        generator = torch.Generator().manual_seed(member)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3, generator=generator)
        if self._optimizer == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, member: MemberId, number: int
    ) -> None:
        """Take a step along a gradient that is drawn for this member and step."""
        generator = torch.Generator().manual_seed(1_000_003 * (member + 1) + number)
        for parameter in optimizer.param_groups[0]["params"]:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.normal_(generator=generator)
        optimizer.step()
