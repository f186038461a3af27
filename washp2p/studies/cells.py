"""Cells: runs of one configuration each, made once and kept.

A cell's folder is named by all of its configuration that is not a field's default (so that versions
with more fields find it again), a file of weights by what is in it; and what the folder holds is
checked against all of it before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p import rundir
from washp2p.errors import RunStoppedError, UsageError
from washp2p.finished import FinishedRun
from washp2p.version import DERIVATION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.config import RunConfig


class Cells:
    """The finished runs below `folder`, of data in `data_dir`.

    It is fetched if `download`. `machine` are flags of `washp2p run` about this machine. With
    `simulated`, members are trained in one process, by `washp2p simulate`: in lockstep that gives
    the same bits.
    """

    def __init__(
        self,
        folder: Path,
        data_dir: Path,
        machine: Sequence[str] = (),
        *,
        download: bool = False,
        simulated: bool = False,
    ) -> None:
        self._folder = folder
        self._data_dir = data_dir
        data = [f"--data-dir={data_dir}", *(["--download"] if download else [])]
        self._measure = ["run", *data, *machine]
        self._make = ["simulate", *data] if simulated else self._measure

    def place(self, config: RunConfig) -> Path:
        """Where a configuration's run is, or will be."""
        plain = {field.name: field.default for field in fields(config)}
        chosen = {k: value for k, value in config.to_wire().items() if value != plain[k]}
        if (file := Path(config.weights)).is_file():
            chosen["weights"] = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        text = json.dumps([chosen, DERIVATION], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return self._folder / f"{config.data}-n{config.n}-{config.method}-{digest}"

    def done(self, config: RunConfig, *, measured: bool = False) -> bool:
        """Whether it has run to its end; with `measured`, with bytes counted, not simulated."""
        place = self.place(config)
        try:
            kept = replace(rundir.read_config(place), weights=config.weights)  # wherever they were
            known = kept == config and bool(rundir.read_summary(place))
        except UsageError:
            return False
        return known and not (measured and FinishedRun.read(place).simulated)

    def run(self, config: RunConfig, *, measured: bool = False) -> FinishedRun:
        """The finished run: it is made now if it is not there. Blocks.

        Raises RunStoppedError if it fails; what was left of an earlier try is removed.
        """
        place = self.place(config)
        if not self.done(config, measured=measured):
            shutil.rmtree(place, ignore_errors=True)
            command = self._measure if measured else self._make
            flags = [*config.flags(), f"--run-dir={place}"]
            _finish([sys.executable, "-m", "washp2p", *command, *flags])
        return FinishedRun.read(place)

    def between(self, config: RunConfig) -> Callable[[Sequence[float]], float]:
        """Of a finished run: from weights of its first members to the test accuracy, in per cent,
        of the model that is so much of each.
        """
        from washp2p.evaluation import average_state
        from workers.__main__ import pick_device
        from workers.soup import read_models

        models = read_models([self.place(config)], self._data_dir, pick_device(""), download=False)

        def accuracy(weights: Sequence[float]) -> float:
            state = average_state(models.states[: len(weights)], weights)
            return models.accuracy(state, models.data.test)

        return accuracy


def _finish(command: list[str]) -> None:
    """Run it to its end; if this is interrupted, it is, too, and sees to its own processes."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()  # which leaving the block does not, if it is for an interrupt
            raise
    if process.returncode:
        last = printed.strip().splitlines()[-1:]
        raise RunStoppedError(f"{' '.join(command)} ended: {' '.join(last)}")
