"""The journal: a SQLite file with all that another coordinator needs to take over a run.

An entry is committed before any worker hears of it, unless the file cannot be written.
`Journal.read` returns the whole journal as a `Past`; a replay needs `read_rosters` only. No
sockets, no decisions.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from coordinator.machine.commands import Rewind
from coordinator.machine.members import Departed, KnownMember, Past, Phase
from washp2p.errors import UsageError
from washp2p.protocol.layout import Layout
from washp2p.protocol.messages.from_worker import Finished
from washp2p.protocol.roster import Roster
from washp2p.runfolder.roster_store import ROSTERS, keep_roster, refuse_damaged, rosters_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Entry = KnownMember | Departed | Roster | Rewind | tuple[str, Any]

_TABLES = f"""
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS members (member INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS departed (member INTEGER PRIMARY KEY, value BLOB NOT NULL);
{ROSTERS}
"""


class Journal:
    """One run's journal. Entries that cannot be written, as on a full disk, are tried again.

    `tell` is a callback. It gets a line for people when writing fails, and when it works again.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[str], None],
        database: sqlite3.Connection | None = None,
    ) -> None:
        """Open or create the file, or use `database` in its place.

        Raises UsageError if the journal cannot be written.
        """
        self._path = path
        self._tell = tell
        self._waiting: dict[tuple[str, Any], Entry] = {}
        self.failing = False
        """Whether the last commit failed, so that entries wait to be written."""
        if database is None:
            refuse_damaged(path)
        try:
            self._database = database or sqlite3.connect(path, isolation_level=None, timeout=1)
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")  # one coordinator a run
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_TABLES)
        except sqlite3.Error as error:
            raise UsageError(
                f"cannot write {path}: {error}; end the coordinator that runs there, or choose "
                "another --run-dir"
            ) from None

    def close(self) -> None:
        """Commit the entries that wait, and close the file."""
        self.commit()
        self._database.close()

    def commit(self) -> None:
        """Write all entries kept since the last commit, in one transaction.

        If that fails, no entry is written, and all wait for the next commit.
        """
        if not self._waiting:
            return
        try:
            self._database.execute("BEGIN")
            for what in self._waiting.values():
                self._write(what)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if not self.failing:
                self.failing = True
                self._tell(
                    f"cannot write {self._path}: {error}; the run goes on, but a coordinator that "
                    "died now could not be replaced: make room"
                )
            return
        self._waiting.clear()
        if self.failing:
            self.failing = False
            self._tell(f"{self._path} is written again")

    def keep(self, what: Entry) -> None:
        """Keep an entry for `commit` to write. It replaces a waiting entry about the same thing."""
        match what:
            case KnownMember(id=member) | Departed(member=member):
                place: tuple[str, Any] = ("member", member)
            case Roster(generation=generation):
                place = ("roster", generation)
            case Rewind():
                place = ("rewind", None)
            case (name, _):
                place = ("fact", name)
        self._waiting.pop(place, None)  # in the order in which things were last said
        self._waiting[place] = what

    def forget_members(self) -> None:
        """Delete the members and how the run ended, so that it can go on from a checkpoint.

        Raises UsageError if the file cannot be written.
        """
        try:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM members")
            self._database.execute(
                "DELETE FROM facts WHERE name IN ('ended', 'settled', 'averages', 'accuracy')"
            )
            self._put_fact("resuming", True)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise UsageError(f"cannot write {self._path}: {error}; make room") from None

    def _write(self, what: Entry) -> None:
        match what:
            case KnownMember():
                self._put("members", what.id, _pack_member(what))
            case Departed():
                self._database.execute("DELETE FROM members WHERE member = ?", (what.member,))
                if what.round:
                    self._put("departed", what.member, msgpack.packb(asdict(what)))
            case Roster():
                keep_roster(self._database, what)
            case Rewind(number):
                self._database.execute("DELETE FROM rosters WHERE first > ?", (number,))
                self._database.execute("DELETE FROM departed")
                self._put_fact("published", number)
                self._put_fact("planned", [])
                self._put_fact("failed", [])
                self._put_fact("resuming", False)
            case (name, value):
                self._put_fact(name, value)

    def fact(self, name: str, default: Any = None) -> Any:
        """The value kept under a name. Raises UsageError if it is not of the default's type."""
        try:
            rows = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,))
            found = rows.fetchone()
            value = default if found is None else msgpack.unpackb(found[0])
        except (ValueError, TypeError, sqlite3.Error) as error:
            self._refuse(f"{name}: {error}")
        if default is not None and type(value) is not type(default):
            self._refuse(f"{name} is {value!r:.60}")
        return value

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"cannot read {self._path}: {what}; expected the journal of this run, undamaged"
        )

    def read(self) -> Past:
        """The whole journal. Raises UsageError if it is not a journal of this version."""
        try:
            members = [_unpack_member(value) for value in self._values("members")]
            rosters = tuple(rosters_in(self._database))
            departed = [Departed(**msgpack.unpackb(value)) for value in self._values("departed")]
            number, whose = self.fact("checkpoint", [0, []])
            given = frozenset(map(int, self.fact("given", [])))
            planned, failed = (tuple(map(int, self.fact(n, []))) for n in ("planned", "failed"))
            averages = list(map(int, self.fact("averages", [])))
        except (ValueError, TypeError, KeyError, AttributeError, sqlite3.Error) as error:
            if isinstance(error, UsageError):
                raise
            self._refuse(f"{error!r:.120}")
        settled = self.fact("settled")
        return Past(
            members=tuple(members),
            departed=tuple(departed),
            rosters=rosters,
            life=self.fact("life", 0),
            published=self.fact("published", 0),
            planned=planned,
            failed=failed,
            kept=(number, whose),
            total_rounds=self.fact("total_rounds", 0),
            given=given,
            settled=next((roster for roster in rosters if roster.generation == settled), None),
            averages=averages,
            notices=self.fact("notices", []),
            accuracy=self.fact("accuracy", {}),
        )

    def _put(self, table: str, member: int, value: bytes) -> None:
        self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (member, value))
        given = self.fact("given", [])
        if member not in given:
            self._put_fact("given", [*given, member])

    def _put_fact(self, name: str, value: Any) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, msgpack.packb(value))
        )

    def _values(self, table: str) -> list[bytes]:
        rows = self._database.execute(f"SELECT value FROM {table} ORDER BY member")
        return [value for (value,) in rows]


def _pack_member(member: KnownMember) -> bytes:
    values = {
        name: getattr(member, name)
        for name in (
            "id",
            "identity",
            "host",
            "pid",
            "endpoint",
            "near",
            "place",
            "key",
            "versions",
            "rounds",
            "no_snapshots",
            "averaging",
            "averaged",
            "counts",
        )
    }
    values["phase"] = int(member.phase)
    values["saved"] = sorted(member.saved)
    values["layout"] = None if member.layout is None else member.layout.to_wire()
    values["finished"] = None if member.finished is None else asdict(member.finished)
    packed: bytes = msgpack.packb(values)
    return packed


def _unpack_member(data: bytes) -> KnownMember:
    values = msgpack.unpackb(data)
    layout, finished = values.pop("layout"), values.pop("finished")
    return KnownMember(
        **{
            **values,
            "phase": Phase(values["phase"]),
            "saved": set(values["saved"]),
            "near": tuple(values["near"]),
            "averaging": tuple(values["averaging"]),
            "averaged": tuple(values["averaged"]),
        },
        layout=None if layout is None else Layout.from_wire(layout),
        finished=None if finished is None else Finished(**finished),
    )
