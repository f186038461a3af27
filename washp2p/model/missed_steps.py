"""Detects a model that trains while no round follows.

A hook of the optimizer that joined begins a round after each step. It does not fire with a new
optimizer, in SAM's two steps, or in a step written by hand. Three signs show that the model trains
all the same: other optimizers of the process step the same parameters; the parameters' version
counters change; and, on a CPU, a few of their values change.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch.optim.optimizer import register_optimizer_step_post_hook

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

IN_A_ROW = 3
"""Steps of another optimizer of the same parameters, without a round, that raise UsageError."""
BESIDE = 100
"""Steps of optimizers for other parts of the model, without a round, that cause a warning."""
LOOKS, SECONDS = 3, 1.0
FEW = 4
TOPIC = "steps without rounds"
CURE = (
    "a round follows a step of the optimizer that joined: join with the one that steps (the inner "
    "one, of a wrapper), or leave and join again with the new one"
)


class MissedSteps:
    """Watches one member's `parameters` and `optimizer`. The callback `tell(topic, text)` warns."""

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        tell: Callable[[str, str], None],
    ) -> None:
        self._optimizer = optimizer
        self._tell = tell
        step = max(1, len(parameters) // FEW)
        self._few = parameters[::step][: FEW + 1]
        self._own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._all = {id(p) for p in parameters}
        self._others: WeakKeyDictionary[torch.optim.Optimizer, str] = WeakKeyDictionary()
        self._in_a_row = self._beside = 0
        self._rounds = 0
        self._began = self._versions = self._look()
        self._told = False
        self._stopped = threading.Event()
        self._hook = register_optimizer_step_post_hook(self._another_stepped)
        self._thread = threading.Thread(
            target=self._keep_looking, name="washp2p watch", daemon=True
        )
        self._thread.start()

    def stepped(self) -> None:
        """Note that a round has followed a step."""
        self._rounds += 1
        self._in_a_row = self._beside = 0
        self._versions = self._look()

    def check(self) -> None:
        """Warn if the model has trained since its last round. Call it before an average.

        It counts how often the parameters have changed, and warns if they have changed as often as
        in LOOKS rounds or more. Raises UsageError if there has been no round at all, and they have
        changed more than once.
        """
        now = self._look()
        grown = min(b - a for a, b in zip(self._versions, now, strict=True))
        if not self._rounds and grown > 1:
            raise UsageError(f"the model has changed {grown} times and no round followed; {CURE}")
        a_round = max(b - a for a, b in zip(self._began, self._versions, strict=True))
        if self._rounds and grown * self._rounds >= LOOKS * max(a_round, self._rounds):
            self._say(f"the model has changed {grown} times since its last round; {CURE}")

    def close(self) -> None:
        """Stop watching. Harmless when called twice."""
        self._stopped.set()
        self._hook.remove()

    def _look(self) -> list[int]:
        return [parameter._version for parameter in self._few]

    def _another_stepped(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Count another optimizer's step on the model. At the limits warn, or raise UsageError."""
        if optimizer is self._optimizer:
            return
        kind = self._others.get(optimizer)
        if kind is None:
            its = {id(p) for group in optimizer.param_groups for p in group["params"]}
            kind = "same" if its & self._own else "beside" if its & self._all else "other"
            self._others[optimizer] = kind
        if kind == "same":
            self._in_a_row += 1
            if self._in_a_row >= IN_A_ROW:
                raise UsageError(
                    f"a {type(optimizer).__name__} has stepped {self._in_a_row} times, with "
                    "parameters of the optimizer that joined, which has not stepped meanwhile, and "
                    f"no round followed; {CURE}"
                )
        elif kind == "beside":
            self._beside += 1
            if self._beside == BESIDE:
                self._say(
                    f"a {type(optimizer).__name__} has stepped parts of the model {BESIDE} times "
                    f"and no round followed; {CURE}"
                )

    def _say(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._tell(TOPIC, text)

    def _keep_looking(self) -> None:
        """Warn if parameters change for LOOKS seconds while no round follows. Look once a second.

        It runs on a thread of its own, because no hook may fire.
        """
        rounds, last, strikes = self._rounds, self._signs(), 0
        live: set[int] = set()
        while not self._stopped.wait(SECONDS):
            signs = self._signs()
            changed = {k for k, (a, b) in enumerate(zip(last, signs, strict=True)) if a != b}
            live |= changed
            going = self._rounds == rounds and bool(live) and changed == live
            strikes = strikes + 1 if going else 0
            if strikes == LOOKS:
                self._say(
                    f"the model has been training for {LOOKS} s and no round followed; {CURE}"
                )
            rounds, last = self._rounds, signs

    def _signs(self) -> list[tuple[int, float]]:
        """The version counter and, on a CPU, the first value of each watched parameter."""
        return [
            (p._version, float(p.detach().reshape(-1)[0]) if p.numel() and p.is_cpu else 0.0)
            for p in self._few
        ]
