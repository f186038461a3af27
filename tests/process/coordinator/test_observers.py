"""Those who look can neither end a run nor hold it up, whatever becomes of what they write."""

from __future__ import annotations

import asyncio
import errno
import json
import time

import pytest

from coordinator.watch.display import Display
from coordinator.watch.observers import FRESH_SECONDS, Observers
from coordinator.watch.scalars import Scalars
from tests.support.machine import Run
from washp2p.runfolder.process_log import Log
from washp2p.runfolder.rundir import METRICS, POPULATION

FULL = OSError(errno.ENOSPC, "No space left on device")


class FullScalars:
    """TensorBoard's files on a disk that is full."""

    def metrics(self, values):
        raise FULL

    close = point = metrics


class Scene:
    def __init__(self, folder, scalars=None):
        self.run = Run(n=2)
        self.run.start()
        self.folder = folder
        self.observers = Observers(Display(Log()), folder, scalars=scalars)

    async def open(self):
        self.observers.open(self.look, self.run.machine.observation)
        return self

    def look(self, *, links):
        return self.run.machine.observation.view(self.run.machine.population, links=links)

    @property
    def events(self):
        return [event["text"] for event in self.look(links=False)["events"]]


@pytest.mark.asyncio
async def test_curves_begin_with_training(tmp_path):
    scene = await Scene(tmp_path).open()
    scene.observers.tick(scene.run.machine.population)
    assert not (tmp_path / POPULATION).exists()
    scene.run.sync()
    for _ in range(3):
        scene.observers.tick(scene.run.machine.population)
    (line,) = (tmp_path / POPULATION).read_text().splitlines()
    assert json.loads(line)["members"] == 2


@pytest.mark.asyncio
async def test_a_disk_that_is_full_is_said_once_and_ends_nothing(tmp_path):
    scene = await Scene(tmp_path, FullScalars()).open()
    (tmp_path / METRICS).mkdir()  # nothing can be appended to it
    for number in range(3):
        scene.observers.metrics({"member": 0, "round": number})
    assert scene.events == [
        "lines of metrics.jsonl are lost: Is a directory; the run goes on",
        f"no more is written for TensorBoard: {FULL!r}; the run goes on",
    ]
    (tmp_path / METRICS).rmdir()
    scene.observers.metrics({"member": 0, "round": 4})
    assert json.loads((tmp_path / METRICS).read_text())["round"] == 4
    scene.observers.close()


@pytest.mark.asyncio
async def test_another_coordinator_goes_on_with_the_curves(tmp_path):
    scene = await Scene(tmp_path).open()
    scene.run.sync()
    scene.observers.tick(scene.run.machine.population)
    scene.observers.metrics({"member": 0, "round": 7})
    later = await Scene(tmp_path).open()
    later.run.sync()
    later.observers.tick(later.run.machine.population)
    lines = [json.loads(line) for line in (tmp_path / POPULATION).read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [0.0, 0.0]
    later.observers.rewind(0)
    assert (tmp_path / POPULATION).read_text() == ""
    assert (tmp_path / METRICS).read_text() == ""


@pytest.mark.asyncio
@pytest.mark.parametrize("line", ['{"round": 3}', '{"round": 3, "seconds": "x"}'])
async def test_damaged_curves_end_nothing(tmp_path, line):
    (tmp_path / POPULATION).write_text(line + "\n")
    scene = await Scene(tmp_path).open()
    scene.run.sync()
    for _ in range(3):
        scene.observers.tick(scene.run.machine.population)
    assert len([text for text in scene.events if "damaged" in text or "without" in text]) == 1
    scene.observers.close()


@pytest.mark.asyncio
async def test_a_round_or_figure_that_no_file_has_room_for_ends_nothing(tmp_path):
    scene = await Scene(tmp_path, Scalars(tmp_path / "board")).open()
    for number in (1 << 63, 1, True):
        scene.observers.metrics({"member": 0, "round": number, "loss": 1e300, "held_out": 1 << 63})
    scene.observers.close()
    assert scene.events == []


@pytest.mark.asyncio
async def test_however_many_ask_the_run_is_looked_at_now_and_then(tmp_path):
    scene = await Scene(tmp_path).open()
    looks = []
    scene.observers._look = lambda *, links: looks.append(links) or {"round": len(looks)}
    began = time.monotonic()
    for _ in range(50):
        assert (await asyncio.to_thread(scene.observers.view))["round"] == len(looks)
    assert len(looks) <= 1 + (time.monotonic() - began) / FRESH_SECONDS
