"""The rosters in a run's journal: the coordinator writes them, a replay reads them.

The module imports no torch.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import msgpack

from washp2p.errors import UsageError
from washp2p.protocol.roster import Roster

if TYPE_CHECKING:
    from pathlib import Path

ROSTERS = """
CREATE TABLE IF NOT EXISTS rosters
    (generation INTEGER PRIMARY KEY, first INTEGER NOT NULL, peers BLOB NOT NULL);
"""


def keep_roster(database: sqlite3.Connection, roster: Roster) -> None:
    """Write a roster."""
    database.execute(
        "INSERT OR REPLACE INTO rosters VALUES (?, ?, ?)",
        (roster.generation, roster.first, msgpack.packb(roster.rows)),
    )


def rosters_in(database: sqlite3.Connection) -> list[Roster]:
    """All rosters in a journal, by generation.

    Raises ValueError if one begins before an older generation does.
    """
    rows = database.execute("SELECT * FROM rosters ORDER BY 1")
    rosters = [
        Roster.from_rows(generation, first, msgpack.unpackb(peers))
        for generation, first, peers in rows
    ]
    for before, after in pairwise(rosters):
        if after.first < before.first:
            raise ValueError(
                f"generation {after.generation} begins before generation {before.generation}"
            )
    return rosters


def refuse_damaged(path: Path) -> None:
    """Raise UsageError if there is a journal and SQLite finds it damaged."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            found = [row[0] for row in database.execute("PRAGMA integrity_check(1)")]
    except sqlite3.OperationalError:
        return  # somebody else has it: whoever opens it says so
    except (sqlite3.Error, ValueError) as error:
        found = [str(error)]
    if found != ["ok"]:
        raise UsageError(
            f"{path} is damaged: {str(found[0]).splitlines()[-1]:.120}; expected the journal as "
            "the coordinator wrote it"
        )


def read_rosters(path: Path) -> list[Roster]:
    """The rosters of a run, from the journal at `path`.

    Raises UsageError if the journal is missing or damaged.
    """
    if not path.exists():
        raise UsageError(f"{path} is missing; --replay needs the coordinator's journal")
    try:
        refuse_damaged(path)
        with closing(sqlite3.connect(path)) as database:
            return rosters_in(database)
    except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {error}; expected it undamaged") from None
