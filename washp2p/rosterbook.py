"""The rosters of a run as its journal has them: which members from which round on.

The coordinator writes them, a replay reads them. No torch.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgpack

from washp2p.errors import UsageError
from washp2p.rounds import Roster

if TYPE_CHECKING:
    from pathlib import Path

ROSTERS = """
CREATE TABLE IF NOT EXISTS rosters
    (epoch INTEGER PRIMARY KEY, first INTEGER NOT NULL, peers BLOB NOT NULL);
"""


def keep_roster(database: sqlite3.Connection, roster: Roster) -> None:
    """Write a roster down."""
    database.execute(
        "INSERT OR REPLACE INTO rosters VALUES (?, ?, ?)",
        (roster.epoch, roster.first, msgpack.packb(roster.rows)),
    )


def rosters_in(database: sqlite3.Connection) -> list[Roster]:
    """All rosters, by epoch."""
    rows = database.execute("SELECT epoch, first, peers FROM rosters ORDER BY epoch")
    return [Roster.from_rows(epoch, first, msgpack.unpackb(peers)) for epoch, first, peers in rows]


def read_rosters(path: Path) -> list[Roster]:
    """The rosters of a run, from its journal. Raises UsageError."""
    if not path.exists():
        raise UsageError(f"{path} is missing; --replay needs the coordinator's journal")
    try:
        with closing(sqlite3.connect(path)) as database:
            return rosters_in(database)
    except (sqlite3.Error, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
