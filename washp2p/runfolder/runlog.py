"""The run log: which values a member applied, and after which of its own steps.

With the seeds it is all that a replay needs. A record is written straight to the kernel, after its
values are applied and before the member gathers values again. So the log always explains what the
member sent, even if the member is killed.

Records are msgpack arrays, a few bytes a round. [own step, generation, round, senders applied,
senders lost, leg] says that values were applied. [own step, generation, round] says that the member
skipped rounds: its own step belongs to `round`, not to the round after the last one. [generation,
round, donor, donor's own step] comes first if the member joined mid-run. Maps are not records. A
map at the beginning of a file names its run and member. If the member finished, a map at the end
has a checksum of everything before it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import msgpack

from washp2p.errors import UsageError
from washp2p.protocol.messages.frames import FIRST
from washp2p.protocol.roster import roster_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from washp2p.protocol.roster import MemberId, Roster

_log = logging.getLogger("washp2p")


class Record(NamedTuple):
    """The member applied values of a leg of `round` after its own step `step`.

    `applied` are the senders of these values, `lost` the senders whose values were lost.
    """

    step: int
    generation: int
    round: int
    applied: tuple[MemberId, ...]
    lost: tuple[MemberId, ...]
    leg: int = FIRST


class Jump(NamedTuple):
    """The member skipped rounds: its own step `step` belongs to `round`."""

    step: int
    generation: int
    round: int


class Joined(NamedTuple):
    """The member began with the state of `donor` after the donor's own step `step`.

    `round` was the last round without the member.
    """

    generation: int
    round: int
    donor: MemberId
    step: int


class RunLog:
    """Appends records of one member to a file. Each `append` is one unbuffered write.

    Once a write has failed, as on a full disk, nothing more is written: a log with a gap is
    useless.
    """

    def __init__(self, path: Path, run: bytes, member: MemberId, *, go_on: bool = False) -> None:
        """Create the file at `path`. With `go_on`, open the existing one.

        Raises UsageError if that fails.
        """
        self._path = path
        self._broken = False
        self._hash = hashlib.blake2b(digest_size=16)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if go_on else "wb", buffering=0)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}: {error.strerror}; choose another --run-dir"
            ) from None
        if not go_on:
            self._write(msgpack.packb({"run": run.hex(), "member": member}))

    def append(self, records: Sequence[Record | Jump | Joined]) -> None:
        """Write records in one call."""
        if records:
            self._write(b"".join(map(msgpack.packb, records)))

    def finish(self) -> None:
        """Write the checksum: the member has finished."""
        self._write(msgpack.packb({"checksum": self._hash.hexdigest()}))

    def _write(self, data: bytes) -> None:
        if self._broken:
            return
        before = self._file.tell()
        try:
            whole = self._file.write(data) == len(data)
            reason = "" if whole else "no space left"
        except OSError as error:
            reason = str(error.strerror)
        self._hash.update(data)
        if reason:
            self._broken = True
            self._file.seek(before)
            self._file.truncate()
            _log.warning(
                "cannot write %s: %s; the run goes on, but cannot be replayed", self._path, reason
            )

    def keep(self) -> tuple[int, bool]:
        """Flush the file to disk. Returns its length in bytes, and whether all writes succeeded.

        Raises OSError.
        """
        os.fsync(self._file.fileno())
        return self._file.tell(), not self._broken

    def go_back(self, size: int, whole: bool) -> None:
        """Cut the file to `size` bytes; `size` and `whole` are what `keep` returned.

        Raises UsageError if the file has fewer bytes.
        """
        self._broken = not whole
        there = self._file.seek(0, os.SEEK_END)
        if there < size:
            raise UsageError(
                f"{self._path} has {there} bytes; expected at least the {size} of the checkpoint: "
                "restore it, or choose another --run-dir"
            )
        self._file.seek(size)
        self._file.truncate()
        self._hash = hashlib.blake2b(self._path.read_bytes(), digest_size=16)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def stands(rosters: Sequence[Roster], number: int, generation: int) -> bool:
    """Whether what a member of `generation` did in round `number` still counts.

    It does not if the run went back to an earlier checkpoint and this member did not. `rosters` are
    the run's.
    """
    return roster_at(rosters, number).generation <= generation


def read_log(  # noqa: PLR0912 - a case a kind of record
    path: Path, rosters: Sequence[Roster], member: MemberId | None = None, *, whole: bool = False
) -> Iterator[Record | Jump | Joined]:
    """The records in the order written. A last record that was cut short is left out.

    Records of rounds that the run discarded when it went back to a checkpoint are left out, too.
    `rosters` tell which: the log of a member that did not go back still has such records. `member`
    is the member whose log it must be, or None for any. If `whole`, the log must end with a
    finished member's checksum. Raises UsageError if the file is damaged, another member's, or not
    whole. Raises OSError if it cannot be read.
    """
    data = path.read_bytes()
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    ended, told = 0, False
    try:
        for values in unpacker:
            begin, ended = ended, unpacker.tell()
            match values:
                case {"run": str(), "member": int(whose)}:
                    told = True
                    if member not in {None, whose}:
                        _refuse(path, f"it is member {whose}'s, not member {member}'s")
                case {"checksum": str(checksum)}:
                    whole = False
                    if hashlib.blake2b(data[:begin], digest_size=16).hexdigest() != checksum:
                        _refuse(path, "its checksum is wrong")
                case [int(step), int(generation), int(number), list(applied), list(lost), int(leg)]:
                    if stands(rosters, number, generation):
                        yield Record(step, generation, number, tuple(applied), tuple(lost), leg)
                case [int(step), int(generation), int(number)]:
                    if stands(rosters, number, generation):
                        yield Jump(step, generation, number)
                case [int(), int(), int(), int()]:
                    yield Joined(*values)
                case _:
                    _refuse(path, f"byte {begin} begins {values!r:.60}, which is no record")
    except (ValueError, StopIteration, msgpack.UnpackException) as error:
        if isinstance(error, UsageError):
            raise
        _refuse(path, f"byte {ended} begins no record")
    if whole and told:  # logs of before there were checksums have no header, either
        _refuse(path, "its end is missing, though its member finished")


def _refuse(path: Path, what: str) -> NoReturn:
    raise UsageError(f"{path} is damaged: {what}; expected the log as the member wrote it")
