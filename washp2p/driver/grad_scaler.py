"""Gradient scaling: an attempted step counts as a step, even if `torch.amp.GradScaler` skips it.

When the scaler finds gradients that are not finite, it does not step the optimizer. A round follows
all the same, so that the members' round numbers agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class Attempts:
    """Calls `skipped` after each `scaler.step(optimizer)` that did not step the optimizer."""

    def __init__(
        self,
        scaler: torch.amp.GradScaler,
        optimizer: torch.optim.Optimizer,
        skipped: Callable[[], None],
    ) -> None:
        self._scaler = scaler
        self._optimizer = optimizer
        self._skipped = skipped
        self._taken = 0
        self._hook = optimizer.register_step_post_hook(self._count)
        scaler.step = self._step  # type: ignore[method-assign]  # until `remove`

    def remove(self) -> None:
        """Restore scaler and optimizer. Harmless when called twice."""
        self._hook.remove()
        if vars(self._scaler).get("step") == self._step:
            del self._scaler.step

    def _count(self, *_: object) -> None:
        self._taken += 1

    def _step(self, optimizer: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        before = self._taken
        result = type(self._scaler).step(self._scaler, optimizer, *arguments, **named)
        if optimizer is self._optimizer and self._taken == before:
            self._skipped()
        return result
