"""Cells: finished runs, each of one configuration, made once and kept.

The name of a cell's folder ends in a digest of all options that differ from their defaults. So
later versions, with more options, find the folder again. A file of weights counts by its content, a
folder of images by its path. Before use, the whole configuration in the folder is checked. A run
that lost a member is not used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.config.config import options
from washp2p.config.options import key_of
from washp2p.errors import RunStoppedError, UsageError
from washp2p.protocol.version import DERIVATION
from washp2p.runfolder import checkpoints, rundir
from washp2p.runfolder.finished import FinishedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.config.config import RunConfig


class Cells:
    """The finished runs below `folder`, on data in `data_dir`.

    With `download`, missing data are fetched. `machine` has flags of `washp2p run` about this
    machine. With `simulated`, `washp2p simulate` trains the members in one process; in lockstep it
    gives the same bits.
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
        """The path of a configuration's run."""
        plain = {key_of(option): option.default for _, option in options()}
        chosen = {k: value for k, value in config.to_wire().items() if value != plain[k]}
        if (file := Path(config.training.weights)).is_file():
            chosen["weights"] = hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        if config.training.data == "imagefolder":
            chosen["images"] = str(self._data_dir.resolve())
        text = json.dumps([chosen, DERIVATION], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return self._folder / f"{config.training.data}-n{config.n}-{config.method.name}-{digest}"

    def done(self, config: RunConfig, *, measured: bool = False) -> bool:
        """Whether the run of `config` is finished, with all members.

        With `measured`, a simulated or resumed run does not count, because not all its bytes were
        counted.
        """
        return self._kept(config, measured=measured) is not None

    def run(self, config: RunConfig, *, measured: bool = False) -> FinishedRun:
        """The run of `config`, made now if missing. Blocks, also while another study makes it.

        An interrupted run goes on from its checkpoint if it has one. With `measured` it starts anew
        instead, because a resumed run has not counted all its bytes. Other remains of an earlier
        try are removed. Raises RunStoppedError if the run fails.
        """
        place = self.place(config)
        with self._alone_with(place):
            kept = self._kept(config, measured=measured)
            if kept is None:
                command = [sys.executable, "-m", "washp2p"]
                if measured or not self._resumed(config):
                    shutil.rmtree(place, ignore_errors=True)
                    how = self._measure if measured else self._make
                    _finish([*command, *how, *config.flags(), f"--run-dir={place}"], place)
                kept = self._kept(config, measured=measured)
            if kept is None:
                raise RunStoppedError(
                    f"{place} has a run that did not keep all its members, or was not "
                    "evaluated; make the study again to repeat it"
                )
            return kept

    def _kept(self, config: RunConfig, *, measured: bool) -> FinishedRun | None:
        """The kept run of `config`; None if `done` would be false."""
        try:
            found = FinishedRun.read(self.place(config))
        except UsageError:
            return None
        usable = _same(found.config, config) and _whole(found)
        return found if usable and (_counted(found) or not measured) else None

    def _resumed(self, config: RunConfig) -> bool:
        """Resume an interrupted run, if possible, and finish it. Returns whether that succeeded."""
        place = self.place(config)
        if not rundir.unfinished(place) or checkpoints.members_in(place) < config.n:
            return False
        if not _same(rundir.read_config(place), config):
            return False
        command = [sys.executable, "-m", "washp2p", *self._measure, f"--resume={place}"]
        try:
            _finish(command, place)
        except RunStoppedError:
            return False
        return True

    @contextmanager
    def _alone_with(self, place: Path) -> Iterator[None]:
        """Keep other studies from making this run at the same time."""
        locks = self._folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / place.name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def between(self, config: RunConfig) -> Callable[[Sequence[float]], float]:
        """A function from weights to the accuracy of the first members' mean with these weights.

        The accuracy is on the test set, in per cent.
        """
        from washp2p.evaluation import average_state
        from workers.__main__ import pick_device
        from workers.training.soup import read_models

        models = read_models([self.place(config)], self._data_dir, pick_device(""), download=False)

        def accuracy(weights: Sequence[float]) -> float:
            state = average_state(models.states[: len(weights)], weights)
            return models.accuracy(state, models.data.test)

        return accuracy


def _same(kept: RunConfig, config: RunConfig) -> bool:
    """Whether two configurations are equal, apart from the path of the pretrained weights."""
    return kept.with_options(weights=config.training.weights) == config


def _whole(run: FinishedRun) -> bool:
    """Whether all members took part throughout, lost no values, and were evaluated."""
    summary = run.summary
    evaluated = len(summary["accuracy"].get("members") or ()) == run.config.n
    return evaluated and not summary.get("departed") and not summary.get("lost_values")


def _counted(run: FinishedRun) -> bool:
    """Whether all bytes of a run were counted. In simulated and resumed runs they were not."""
    return not run.simulated and len(run.summary["rosters"]) == 1


def _finish(command: list[str], place: Path) -> None:
    """Run a command to its end. An interrupt terminates it. Raises RunStoppedError if it fails."""
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
        last = printed.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise RunStoppedError(f"{last[0]} (the run in {place})", max(process.returncode, 1))
