"""Puts a worker's model on disk before its process ends, whether the run ends well or early.

A final model is written as soon as there is space. If the run stops early, the member's present
model goes into `rescued/`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any

from washp2p.errors import DroppedError, UsageError
from washp2p.runfolder import rundir
from washp2p.runfolder.process_log import complain
from workers.training.model_files import save_model

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from washp2p import Member
    from washp2p.errors import WashError
    from workers.training.trainer import Trainer

GRACE_SECONDS = 0.6
"""How long a step may go on after the run has ended. Then the process ends."""


class Rescue:
    """Writes the models of one member of the run called `run` into `folder`."""

    def __init__(self, folder: Path, run: str, member: int) -> None:
        self._folder = folder
        self._run = run
        self._member = member
        self._trainer: Trainer | None = None
        self._writing = threading.RLock()
        self._written = False

    def watch(self, trainer: Trainer) -> None:
        """Set the trainer whose model is to be kept from now on."""
        self._trainer = trainer

    def on_stop(self, error: WashError) -> None:
        """End the process soon, even in the middle of a long step, but not while it writes a model.

        A callback for `Connection.on_stop`: any thread may call it when the run has ended early.
        After a DroppedError it does nothing, because the worker joins again.
        """
        if isinstance(error, DroppedError):
            return  # it will join again

        def end() -> None:
            with self._writing:
                self.keep(error)
                complain(f"worker: {error}")
                for child in multiprocessing.active_children():  # data loaders
                    child.kill()
                os._exit(error.exit_code)

        timer = threading.Timer(GRACE_SECONDS, end)
        timer.daemon = True
        timer.start()

    def keep(self, error: BaseException) -> None:
        """Write the member's present model, once, if it is finite and no final model is on disk."""
        with self._writing:
            trainer, self._trainer = self._trainer, None
            if trainer is None or self._written or not trainer.round:
                return
            state = {k: v.detach().cpu().clone() for k, v in trainer.model.state_dict().items()}
            trained = [v for v in state.values() if v.is_floating_point()]
            if not all(bool(v.isfinite().all()) for v in trained):
                return
            path = rundir.rescued_file(self._folder, self._member)
            about: dict[str, Any] = {"member": self._member, "round": trainer.round}
            try:  # the process is to end soon
                save_model(path, state, lasting=False, run=self._run, **about)
            except UsageError as failure:
                complain(f"worker: {failure}")
            else:
                text = f"worker: its model after round {trainer.round} is in {path}: {error!r:.200}"
                complain(text, "rescued")

    def write(
        self, joined: Member, path: Path, state: dict[str, torch.Tensor], **about: Any
    ) -> None:
        """Write a final model, waiting while the disk is full. `about` is as in `save_model`."""
        with self._writing:
            joined.persist(lambda: save_model(path, state, run=self._run, **about))
            self._written = True
