"""Checkpoints on disk: members' snapshots of a round, in checkpoints/<round>/<id>.safetensors.

A file exists whole or not at all. Older rounds are deleted only when all members have a newer
checkpoint. So there is always a round for which every member's checkpoint exists.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.runfolder.rundir import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from washp2p.protocol.roster import MemberId

FOLDER = "checkpoints"


def checkpoint_file(run: Path, round_number: int, member: MemberId) -> Path:
    """The path of a member's checkpoint of a round."""
    return run / FOLDER / str(round_number) / f"{member}.safetensors"


class CheckpointFolder:
    """The checkpoints of `member` in the run folder `run`."""

    def __init__(self, run: Path, member: MemberId) -> None:
        self._run = run
        self._member = member

    def name(self, round_number: int) -> str:
        """The path of the checkpoint of a round."""
        return str(checkpoint_file(self._run, round_number, self._member))

    def write(self, round_number: int, data: bytes) -> None:
        """Write the snapshot of a round. Raises UsageError if it cannot be written."""
        write_bytes(checkpoint_file(self._run, round_number, self._member), data)

    def read(self, round_number: int) -> bytes:
        """Read the snapshot of a round. Raises UsageError if it cannot be read."""
        path = checkpoint_file(self._run, round_number, self._member)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}; expected this member's checkpoint there"
            ) from None

    def forget(self, rounds: range) -> None:
        """Delete the checkpoints of these rounds, of all members."""
        forget(self._run, rounds)


def held(run: Path, rounds: Iterable[int]) -> list[tuple[int, MemberId]]:
    """The checkpoints of these rounds on this host, each as (round, member)."""
    return [
        (number, int(path.stem))
        for number in rounds
        for path in sorted((run / FOLDER / str(number)).glob("*.safetensors"))
        if path.stem.isdecimal()
    ]


def members_in(run: Path) -> int:
    """The largest number of checkpoints that any one round has; 0 if there are none."""
    folders = _folders(run).values()
    return max((len(list(folder.glob("*.safetensors"))) for folder in folders), default=0)


def forget(run: Path, rounds: range) -> None:
    """Delete the checkpoints of these rounds, of all members."""
    for number, folder in _folders(run).items():
        if number in rounds:
            shutil.rmtree(folder, ignore_errors=True)


def _folders(run: Path) -> dict[int, Path]:
    """The folders with checkpoints, by round."""
    return {int(path.name): path for path in (run / FOLDER).glob("*") if path.name.isdecimal()}
