"""The run log: which values a member applied, and before which of its own steps.

With the seeds it is all that a replay needs. A record is written after its values were applied and
before the member's next gather, straight to the kernel: what a member passed on is always explained
by what its log says, even after a kill. Records are msgpack arrays, a few bytes a round:
[own step, epoch, round, senders applied, senders lost, leg]; [own step, epoch, round] where the
member's clock jumped: that step belongs to `round`, not to the one after the last; and, first of
all, [epoch, round, donor, donor's own step] where it came in mid-run.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from washp2p.errors import UsageError
from washp2p.frames import FIRST
from washp2p.rounds import roster_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from washp2p.rounds import MemberId, Roster

_log = logging.getLogger("washp2p")


class Record(NamedTuple):
    """One application: before own step `step` + 1, a leg of `round`, values from these senders."""

    step: int
    epoch: int
    round: int
    applied: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]
    leg: int = FIRST


class Jump(NamedTuple):
    """Own step `step` belongs to `round`, by more than one above the step before."""

    step: int
    epoch: int
    round: int


class Joined(NamedTuple):
    """The member began with the state of `donor` after its own step `step`; `round` was the last
    without it.
    """

    epoch: int
    round: int
    donor: MemberId
    step: int


class RunLog:
    """Appends records to a file. Each `append` is one unbuffered write.

    Once a write has failed (the disk is full) there are no more: a log with a gap says nothing.
    """

    def __init__(self, path: Path, *, go_on: bool = False) -> None:
        """Begin the file at `path`, or open it to `go_on`. Raises UsageError if that fails."""
        self._path = path
        self._broken = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if go_on else "wb", buffering=0)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}: {error.strerror}; choose another --run-dir"
            ) from None

    def append(self, records: Sequence[Record | Jump | Joined]) -> None:
        """Write records, all at once."""
        if not records or self._broken:
            return
        data = b"".join(map(msgpack.packb, records))
        before = self._file.tell()
        try:
            whole = self._file.write(data) == len(data)
            reason = "" if whole else "no space left"
        except OSError as error:
            reason = str(error.strerror)
        if reason:
            self._broken = True
            self._file.seek(before)
            self._file.truncate()
            _log.warning(
                "cannot write %s: %s; the run goes on, but cannot be replayed", self._path, reason
            )

    def keep(self) -> tuple[int, bool]:
        """Have on disk what was appended; how many bytes, and whether it is all. Raises OSError."""
        os.fsync(self._file.fileno())
        return self._file.tell(), not self._broken

    def go_back(self, size: int, whole: bool) -> None:
        """Be as `keep` said. Raises UsageError if there are not so many bytes."""
        self._broken = not whole
        there = self._file.seek(0, os.SEEK_END)
        if there < size:
            raise UsageError(
                f"{self._path} has {there} bytes; expected at least the {size} of the checkpoint: "
                "restore it, or choose another --run-dir"
            )
        self._file.seek(size)
        self._file.truncate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path, rosters: Sequence[Roster]) -> Iterator[Record | Jump | Joined]:
    """Records in the order they were written; a last one cut short by a kill is left out.

    So are those of rounds that the run of these `rosters` went back on: a member that did not come
    along to a checkpoint has them still, of epochs that were over by then.
    """
    with path.open("rb") as file:
        for values in msgpack.Unpacker(file):
            match values:
                case [step, epoch, round_number, applied, lost, leg]:
                    if roster_at(rosters, round_number).epoch <= epoch:
                        yield Record(step, epoch, round_number, tuple(applied), tuple(lost), leg)
                case [_, epoch, round_number]:
                    if roster_at(rosters, round_number).epoch <= epoch:
                        yield Jump(*values)
                case [_, _, _, _]:
                    yield Joined(*values)
