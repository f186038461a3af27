"""The run log: what is read is what was written, whole records only, and nothing undone."""

from __future__ import annotations

import pytest

from tests.support.disk import files_no_larger_than
from washp2p.errors import UsageError
from washp2p.protocol.roster import Peer, Roster
from washp2p.runfolder.runlog import Joined, Jump, Record, RunLog, read_log

PEERS = tuple(Peer(member=m, endpoint="", host="") for m in range(2))
RUN = b"12345678"
ROSTERS = [Roster(generation=0, peers=PEERS)]


def record(step, generation=0):
    return Record(step, generation, step, (1,), ())


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "log" / "0.msgpack"
    log = RunLog(path, RUN, 0)
    records = [Joined(0, 3, 1, 3), Jump(1, 0, 9), *map(record, range(2, 300))]
    log.append(records)
    log.close()
    assert list(read_log(path, ROSTERS)) == records
    path.write_bytes(path.read_bytes()[:-1])
    assert list(read_log(path, ROSTERS)) == records[:-1]


def test_it_goes_back_to_a_checkpoint(tmp_path):
    path = tmp_path / "0.msgpack"
    log = RunLog(path, RUN, 0)
    log.append([record(1)])
    kept = log.keep()
    log.append([record(2)])
    log.close()
    log = RunLog(path, RUN, 0, go_on=True)
    log.go_back(*kept)
    log.append([record(3)])
    assert list(read_log(path, ROSTERS)) == [record(1), record(3)]
    with pytest.raises(UsageError, match="expected at least the 999 of the checkpoint"):
        log.go_back(999, whole=True)
    log.close()
    with pytest.raises(UsageError, match="cannot write"):
        RunLog(tmp_path / "1.msgpack", RUN, 0, go_on=True)


def test_what_the_run_went_back_on_is_left_out(tmp_path):
    path = tmp_path / "0.msgpack"
    log = RunLog(path, RUN, 0)
    log.append([record(1), record(2), Jump(3, 0, 5), record(6, generation=4)])
    log.close()
    rosters = [*ROSTERS, Roster(generation=3, peers=PEERS, first=2)]
    assert list(read_log(path, rosters)) == [record(1), record(6, generation=4)]


def test_a_full_disk_ends_the_log_with_a_whole_record(tmp_path, caplog):
    path = tmp_path / "0.msgpack"
    log = RunLog(path, RUN, 0)
    log.append([record(1)])
    size = path.stat().st_size
    for room in (size, size + 2):
        with files_no_larger_than(room):
            log.append([record(2)])
        assert path.stat().st_size == size
        log.append([record(3)])  # it would explain nothing any more
    assert log.keep() == (size, False)
    log.close()
    assert list(read_log(path, ROSTERS)) == [record(1)]
    assert [r.message for r in caplog.records if "cannot be replayed" in r.message] == [
        f"cannot write {path}: File too large; the run goes on, but cannot be replayed"
    ]


def finished_log(path, member=0):
    log = RunLog(path, RUN, member)
    log.append([Joined(0, 3, 1, 3), *map(record, range(4, 50))])
    log.finish()
    log.close()
    return path.read_bytes()


def test_a_log_of_a_member_that_finished_is_whole(tmp_path):
    path = tmp_path / "0.msgpack"
    data = finished_log(path)
    assert len(list(read_log(path, ROSTERS, 0, whole=True))) == 47
    path.write_bytes(data[: len(data) // 2])
    assert list(read_log(path, ROSTERS, 0))  # as a kill leaves it
    with pytest.raises(UsageError, match=f"{path} is damaged: its end is missing"):
        list(read_log(path, ROSTERS, 0, whole=True))
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"{path} is damaged: it is member 0's, not member 1's"):
        list(read_log(path, ROSTERS, 1))


@pytest.mark.parametrize("at", range(40, 400, 17))
def test_a_flipped_bit_in_a_log_is_refused_by_name(tmp_path, at):
    path = tmp_path / "0.msgpack"
    data = bytearray(finished_log(path))
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"{path} is damaged"):
        list(read_log(path, ROSTERS, 0, whole=True))


def test_a_log_goes_on_from_a_checkpoint_and_is_whole_again(tmp_path):
    path = tmp_path / "0.msgpack"
    log = RunLog(path, RUN, 0)
    log.append([record(1)])
    kept = log.keep()
    log.append([record(2)])
    log.finish()
    log.close()
    log = RunLog(path, RUN, 0, go_on=True)
    log.go_back(*kept)
    log.append([record(3)])
    log.finish()
    log.close()
    assert list(read_log(path, ROSTERS, 0, whole=True)) == [record(1), record(3)]
