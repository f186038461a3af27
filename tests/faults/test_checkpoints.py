"""Everything is killed at once, or the disk is full: the run goes on from its checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess

import pytest

from tests.support.faults import Story
from tests.support.processes import replay
from washp2p.model.snapshot import CHECKSUM_BYTES
from washp2p.rounds import hold_points
from washp2p.runfolder.runlog import Record
from workers.simulation.simulate import differences, simulate
from workers.training.data import load_data

FLAGS = ("--n=3", "--p=0.05", "--patience=2", "--epochs=4", "--checkpoint-epochs=1")


def kill_all(here):
    """A power cut."""
    for worker in here.workers:
        worker.process.kill()
    here.coordinators[-1].kill()
    for worker in here.workers:
        worker.process.join()


def three(here, point, reached):
    """Three members, one of which is held at a point; it comes first."""
    workers = [here.worker((point, reached)), here.worker(), here.worker()]
    workers[0].wait_until_held()
    return workers


def resume(here, *flags):
    """Everything again, from the checkpoints."""
    coordinator = here.coordinator(*flags, resume=True)
    return coordinator, [here.worker() for _ in range(3)]


def finish(coordinator, workers):
    assert [worker.wait() for worker in workers] == [0] * len(workers)
    assert coordinator.wait() == 0, coordinator.text


def assert_undisturbed(here, tmp_path, *, unheard=()):
    """It ends with the bits, the metrics and the accounts of a run that was never interrupted.

    Metrics of the rounds `unheard` were on their way to a coordinator that was killed.
    """
    story = Story(here.folder)
    story.assert_rosters_agree()
    for records in story.logs.values():
        assert [r.round for r in records if isinstance(r, Record)] == list(range(1, 161))
    reference = tmp_path / "reference"
    data = load_data(story.config, tmp_path, download=False)
    summary = simulate(story.config, data, reference, on_epoch=lambda _: None)
    assert differences(reference, here.folder) == []
    heard, expected = (
        sorted(
            line
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if json.loads(line)["round"] not in unheard
        )
        for folder in (here.folder, reference)
    )
    assert heard == expected
    for row, simulated in zip(story.summary["bytes"], summary["bytes"], strict=True):
        for key in ("payload", "expected_payload", "steps", "applied_values"):
            assert row[key] == simulated[key], key
        assert row["theory"] == pytest.approx(simulated["theory"])
    return story


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("flags", "rounds"),
    [
        (("--swa-from=1",), (40, 80)),
    ],
    ids=["swa"],
)
def test_a_power_cut(here, tmp_path, flags, rounds):
    here.coordinator(*FLAGS, "--max-delay=0", *flags)
    three(here, hold_points.BEFORE_SEND, 110)
    kill_all(here)
    second, workers = resume(here)
    line = second.until("go on from their checkpoints of round")
    assert int(line.split()[-1].rstrip(".")) in rounds
    finish(second, workers)
    story = assert_undisturbed(here, tmp_path)
    assert [roster.members for roster in story.rosters] == [(0, 1, 2)] * 2
    kept = {int(folder.name) for folder in (here.folder / "checkpoints").iterdir()}
    assert min(kept) > 80


def write_as_before(checkpoint):
    """As versions wrote it that called a roster's generation an epoch."""
    whole = checkpoint.read_bytes()[:-CHECKSUM_BYTES]
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    metadata = header["__metadata__"]
    assert '"generations"' in metadata["washp2p"]
    metadata["washp2p"] = metadata["washp2p"].replace('"generations"', '"epochs"')
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    checksum = hashlib.blake2b(whole, digest_size=CHECKSUM_BYTES).digest()
    checkpoint.write_bytes(whole + checksum)


@pytest.mark.timeout(120)
def test_checkpoints_of_earlier_versions(here, tmp_path):
    here.coordinator(*FLAGS, "--max-delay=0")
    three(here, hold_points.BEFORE_SEND, 60)
    kill_all(here)
    files = list((here.folder / "checkpoints").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        write_as_before(file)
    second, workers = resume(here)
    second.until("go on from their checkpoints of round 40")
    finish(second, workers)
    assert_undisturbed(here, tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "flags",
    [("--max-delay=none",)],
    ids=" ".join,
)
def test_a_power_cut_when_values_are_late(here, tmp_path, flags):
    here.coordinator(*FLAGS, *flags)
    three(here, hold_points.BEFORE_SEND, 110)
    kill_all(here)
    second, workers = resume(here)
    finish(second, workers)
    story = Story(here.folder)
    story.assert_rosters_agree()
    assert story.summary["rounds"] == 160
    assert replay(here.folder, tmp_path) == []


@pytest.mark.timeout(120)
def test_interrupted_and_killed_again_while_it_is_resumed(here, tmp_path):
    """Ctrl-C, then a coordinator that dies while it waits, then one that dies in training."""
    first = here.coordinator(*FLAGS, "--max-delay=0")
    workers = [here.worker() for _ in range(3)]
    first.until("checkpoint of round 40")
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130
    assert [worker.wait() for worker in workers] == [130] * 3
    second = here.coordinator(resume=True)
    early = here.worker()
    second.until("joined (1 of 3)")
    second.kill()
    third = here.coordinator()  # that it is to resume is in the journal
    third.until("joined (1 of 3)")
    workers = [early, *(here.worker() for _ in range(2))]
    third.until("go on from their checkpoints of round 40")
    third.until("epoch 3")
    third.kill()
    fourth = here.coordinator()
    finish(fourth, workers)
    assert_undisturbed(here, tmp_path, unheard=(120,))


@pytest.mark.timeout(120)
def test_without_one_of_its_members(here, tmp_path):
    here.coordinator(*FLAGS, "--max-delay=0", "--checkpoint-epochs=2")
    three(here, hold_points.BEFORE_SEND, 110)
    kill_all(here)
    (here.folder / "checkpoints" / "80" / "1.safetensors").unlink()
    second = here.coordinator("--min-n=2", resume=True)
    workers = [here.worker() for _ in range(3)]
    second.until("going on with 2 of 3 members")
    assert sorted(worker.wait() for worker in workers) == [0, 0, 2]
    assert second.wait() == 0, second.text
    refused = next(worker for worker in workers if worker.wait())
    assert "no checkpoint of round" in refused.text
    story = Story(here.folder)
    story.assert_rosters_agree()
    assert story.summary["averaged_over"] == [0, 2]
    (gone,) = story.summary["departed"]
    assert (gone["member"], gone["round"]) == (1, 81)
    assert replay(here.folder, tmp_path) == []


@pytest.mark.timeout(120)
def test_members_that_stopped_leave_checkpoints(here, tmp_path):
    """The coordinator stays away: they stop at its last seed, and go on from there."""
    flags = ("--checkpoint-epochs=0", "--patience=0.2", "--max-delay=0")
    first = here.coordinator(*FLAGS, *flags)
    workers = three(here, hold_points.BEFORE_SEND, 60)
    first.kill()
    workers[0].let_go()
    assert [worker.wait() for worker in workers] == [1] * 3
    assert all("--resume RUN" in worker.text for worker in workers)
    second, workers = resume(here, "--patience=2")
    assert int(second.until("go on from their checkpoints of round").split()[-1]) in range(60, 80)
    finish(second, workers)
    assert_undisturbed(here, tmp_path)


def fill(folder):
    """Leave no room on the disk of `folder`; by which file."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    return filler


@pytest.fixture
def disk():
    """Mounts a small disk at a folder; skips where that is not permitted."""
    with contextlib.ExitStack() as mounted:

        def mount(folder, size):
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs root to mount a small disk: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield mount


@pytest.mark.timeout(120)
def test_no_room_for_a_checkpoint(here, disk, tmp_path):
    small_disk = disk(here.folder / "checkpoints", "1200k")  # for those of one round, and a bit
    first = here.coordinator(*FLAGS, "--max-delay=0")
    workers = three(here, hold_points.BEFORE_SEND, 60)
    first.until("all members have a checkpoint of round 40")
    filler = fill(small_disk)
    workers[0].let_go()
    assert "No space left on device" in first.until("has no checkpoint of round 80")
    assert "last good one is of round 40" in first.printed[-1]
    assert sorted(path.name for path in (small_disk / "40").iterdir()) == [
        f"{member}.safetensors" for member in range(3)
    ]
    first.until("epoch 3")
    kill_all(here)
    filler.unlink()
    second, workers = resume(here)
    second.until("go on from their checkpoints of round 40")
    finish(second, workers)
    assert_undisturbed(here, tmp_path)


@pytest.mark.timeout(120)
def test_no_room_for_anything_for_a_while(here, disk):
    """The run goes on, and says what it could not write."""
    disk(here.folder, "4m")
    coordinator = here.coordinator(*FLAGS, "--max-delay=0", "--epochs=8")
    workers = three(here, hold_points.BEFORE_SEND, 100)
    coordinator.until("all members have a checkpoint of round 80")
    filler = fill(here.folder)
    workers[0].let_go()
    coordinator.until("journal.sqlite: database or disk is full; the run goes on")
    coordinator.until("has no checkpoint of round 120: cannot write")
    filler.unlink()
    coordinator.until("journal.sqlite is written again")
    coordinator.until("all members have a checkpoint of round")
    finish(coordinator, workers)
    story = Story(here.folder)
    assert story.summary["averaged_over"] == [0, 1, 2]
    assert story.summary["lost_values"] == 0


@pytest.mark.timeout(120)
def test_no_room_for_the_journal_only(here, disk, tmp_path):
    """The checkpoint that it names stays, though all members have newer ones."""
    for place in (here.folder, here.folder / "checkpoints"):
        disk(place, "4m")
    first = here.coordinator(*FLAGS, "--max-delay=0")
    held, *_ = three(here, hold_points.BEFORE_SEND, 60)
    first.until("all members have a checkpoint of round 40")
    filler = fill(here.folder)
    held.let_go()
    first.until("journal.sqlite: database or disk is full; the run goes on")
    first.until("all members have a checkpoint of round 80")
    kill_all(here)
    filler.unlink()
    second, workers = resume(here)
    second.until("go on from their checkpoints of round 40")
    finish(second, workers)
    assert_undisturbed(here, tmp_path)


@pytest.mark.timeout(60)
def test_a_place_that_cannot_be_written(here):
    (here.folder).mkdir()
    (here.folder / "checkpoints").write_text("in the way")
    coordinator = here.coordinator(*FLAGS, "--n=2")
    finish(coordinator, [here.worker() for _ in range(2)])
    assert "has no checkpoint of round 40" in coordinator.text
    assert "Not a directory" in coordinator.text
    assert "there is none" in coordinator.text
