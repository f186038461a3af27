"""The journal: what was kept is there again, all that belongs together or nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from coordinator.machine.commands import Rewind
from coordinator.machine.members import Departed, KnownMember, Phase
from coordinator.service.journal import Journal
from washp2p.errors import UsageError
from washp2p.protocol.roster import Peer, Roster
from washp2p.runfolder.roster_store import keep_roster, read_rosters, rosters_in


def roster(generation, first, *members):
    peers = tuple(Peer(member=m, endpoint=f"tcp://h:{m}", host="h") for m in members)
    return Roster(generation=generation, peers=peers, first=first)


@pytest.fixture
def path(tmp_path):
    """Of a journal in which member 1 is lost from round 60 on, with a checkpoint of round 40."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, print)
    for member in (0, 1):
        journal.keep(KnownMember(id=member, identity=b"%d" % member, host="h", pid=1, saved={40}))
    journal.keep(roster(0, 1, 0, 1))
    journal.keep(("checkpoint", [40, [0, 1]]))
    journal.keep(Departed(1, "h", "died", 60))
    journal.keep(roster(1, 60, 0))
    journal.keep(("published", 80))
    journal.close()
    return path


def test_what_was_kept_is_there_again(path):
    journal = Journal(path, print)
    past = journal.read()
    assert [(m.id, m.phase, m.saved) for m in past.members] == [(0, Phase.WELCOMED, {40})]
    assert past.departed == (Departed(1, "h", "died", 60),)
    assert past.rosters == (roster(0, 1, 0, 1), roster(1, 60, 0))
    assert (past.published, past.kept, past.given) == (80, (40, [0, 1]), {0, 1})
    with pytest.raises(UsageError, match="end the coordinator that runs there"):
        Journal(path, print)
    journal.close()


def test_a_damaged_journal_is_refused_by_name(path):
    whole = path.read_bytes()
    refusals = []
    for at in range(100, len(whole), 97):
        data = bytearray(whole)
        data[at] ^= 0xFF
        path.write_bytes(data)
        for side in ("-wal", "-shm"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        try:
            journal = Journal(path, print)
        except UsageError as error:
            refusals.append(str(error))
            continue
        try:
            journal.read()
        except UsageError as error:
            refusals.append(str(error))
        finally:
            journal.close()
    assert len(refusals) > 5
    assert all(str(path) in text and "\n" not in text for text in refusals)


@pytest.mark.parametrize(
    ("fact", "value"),
    [("published", "many"), ("planned", [[1]]), ("checkpoint", [1]), ("given", {}), ("life", None)],
)
def test_facts_of_another_kind_are_refused_by_name(path, fact, value):
    journal = Journal(path, print)
    journal.keep((fact, value))
    journal.commit()
    with pytest.raises(UsageError, match=f"cannot read {path}: .*expected the journal"):
        journal.read()
    journal.close()


def test_rosters_out_of_order_are_refused_by_name(path):
    journal = Journal(path, print)
    journal.keep(roster(5, 3, 0, 1))
    journal.commit()
    with pytest.raises(UsageError, match="generation 5 begins before generation 1"):
        journal.read()
    journal.close()
    with pytest.raises(UsageError, match="generation 5 begins before generation 1"):
        read_rosters(path)


def test_going_back_takes_effect_together_with_the_new_roster(path):
    journal = Journal(path, print)
    journal.keep(Rewind(40))
    assert journal.read().published == 80
    journal.keep(("life", 2))
    journal.keep(roster(2, 41, 0, 1))
    assert journal.read().rosters == (roster(0, 1, 0, 1), roster(1, 60, 0))
    journal.commit()
    past = journal.read()
    assert past.rosters == (roster(0, 1, 0, 1), roster(2, 41, 0, 1))
    assert (past.published, past.life, past.departed) == (40, 2, ())
    journal.close()


def test_rosters_in_a_journal_of_an_earlier_version_are_read(tmp_path):
    """Its table calls the generation an epoch."""
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        columns = "(epoch INTEGER PRIMARY KEY, first INTEGER, peers BLOB)"
        database.execute(f"CREATE TABLE rosters {columns}")
        keep_roster(database, roster(3, 7, 0, 1))
        assert rosters_in(database) == [roster(3, 7, 0, 1)]
