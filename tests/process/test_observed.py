"""A real run, and all that can look at it: a browser, Prometheus, TensorBoard, logs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from contextlib import contextmanager

import pytest

from tests.support.polling import eventually
from tests.support.processes import LONG
from tests.support.prometheus import samples
from tests.support.scalars import series

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.alone  # it looks at how fast a run goes


def events_of(text):
    """The events of a log; every line of it is one."""
    return [json.loads(line) for line in text.splitlines()]


def address_in(text, event="listening"):
    return next(e["address"] for e in events_of(text) if e["event"] == event and "address" in e)


def ask(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


class Observed:
    """A run of three members; `page` is where its status page is."""

    def __init__(self, runs, *flags):
        self.coordinator = runs.coordinator("--n=3", "--http=127.0.0.1:*", "--log=json", *flags)
        line = self.coordinator.until("status page at")
        self.page = re.search(r"http://\S+/", json.loads(line)["message"])[0]
        self.workers = [
            runs.worker(self.coordinator.address, "--metrics=127.0.0.1:*", "--log=json")
            for _ in range(3)
        ]

    def view(self):
        return json.loads(ask(self.page + "status.json"))

    def points(self):
        return json.loads(ask(self.page + "history.json"))


@contextmanager
def browser(address, tmp_path, *flags):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *flags, address]
    yield subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
@pytest.mark.timeout(180)
def test_all_that_looks_sees_one_and_the_same_run(runs):
    observed = Observed(runs, *LONG, "--tensorboard")
    view = eventually(
        lambda: (v := observed.view())["distance"] and all(r["loss"] for r in v["members"]) and v
    )
    # Each member's own metrics, and what the coordinator says of all.
    own = [samples(ask(address_in(worker.text))) for worker in observed.workers]
    links = {}
    for found in own:
        for labels, count in found["washp2p_sent_bytes_total"]:
            if labels["kind"] == "exchange":
                links[int(labels["member"]), int(labels["peer"])] = count
                assert labels["run"] == "run"
        assert found["washp2p_members"][0][1] == 3
        assert found["washp2p_rounds_total"][0][1] > 0
        assert found["washp2p_plan_seconds_total"][0][1] > 0
        assert {value for _, value in found["washp2p_lost_values_total"]} == {0}
    assert set(links) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert sum(links.values()) > 0

    def said_by_all():
        """As much as each has said of itself: it tells the coordinator a moment later."""
        found = samples(ask(observed.page + "metrics"))
        sent = {labels["kind"]: n for labels, n in found["washp2p_population_sent_bytes_total"]}
        return sent["exchange"] >= sum(links.values()) and found

    together = eventually(said_by_all)
    assert together["washp2p_population_held_out_percent"][0][1] > 0
    assert together["washp2p_population_round"][0][1] >= view["round"] > 0
    eventually(lambda: observed.points()[-1]["distance"] and observed.points()[-1]["held_out"])
    observed.coordinator.process.send_signal(signal.SIGINT)
    assert observed.coordinator.wait() == 130
    for worker in observed.workers:
        worker.wait()
    # The curves stay in the run folder.
    lines = (observed.coordinator.folder / "population.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    assert points[-1]["distance"] > 0
    assert points[-1]["held_out"] > 0
    assert [p["seconds"] for p in points] == sorted(p["seconds"] for p in points)
    # Logs: every line an event of this run, about a member where it is.
    events = events_of(observed.coordinator.text)
    assert {event["run"] for event in events} == {"run"}
    joined = [event["member"] for event in events if event["event"] == "joined"]
    assert sorted(joined) == [0, 1, 2]
    told = [event for event in events if event["event"] == "metrics"]
    assert {event["member"] for event in told} == {0, 1, 2}
    assert told[0]["values"]["epoch"] == 1
    assert (events[-1]["event"], events[-1]["level"]) == ("ended", "error")
    for worker in observed.workers:
        events = events_of(worker.text)
        first = next(k for k, e in enumerate(events) if e["event"] == "joined")
        assert {e["run"] for e in events[first:]} == {"run"}
        assert len({e["member"] for e in events[first:]}) == 1
        epochs = [e["epoch"] for e in events if e["event"] == "metrics"]
        assert epochs
        assert epochs == list(range(1, len(epochs) + 1))
    board = observed.coordinator.folder / "tensorboard"
    assert {path.name for path in board.iterdir()} == {
        "population", "member-0", "member-1", "member-2",
    }  # fmt: skip
    assert "population/distance" in series(board / "population")
    assert {"training/loss", "exchange/bytes"} <= set(series(board / "member-1"))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.timeout(180)
def test_the_page_in_a_browser(runs, tmp_path):
    observed = Observed(runs, *LONG)
    eventually(lambda: (v := observed.view())["distance"] and v["held_out"])
    eventually(lambda: len(observed.points()) > 3)
    flags = ("--virtual-time-budget=5000", "--dump-dom")
    with browser(observed.page, tmp_path, *flags) as seen:
        dom = seen.stdout
    assert re.search(r'<span id="state" class="state training">training</span>', dom)
    rows = re.search(r'<table id="members">.*?</table>', dom, re.DOTALL)[0]
    assert rows.count('<tr class="enrolled">') == 3
    cells = re.search(r'<table id="matrix">.*?</table>', dom, re.DOTALL)[0]
    assert len(re.findall(r"<td[^>]*>[\d.]+ [kM]?B</td>", cells)) == 6
    for chart in ("accuracy", "distance", "bytes"):
        drawn = re.search(rf'<div id="{chart}" class="chart">.*?</div>', dom, re.DOTALL)[0]
        assert re.search(r'<polyline class="curve" points="[\d., ]{20,}"', drawn)
    assert "training begins" in dom
    assert '<p id="trouble" hidden' in dom
    picture = tmp_path / "page.png"
    flags = ("--virtual-time-budget=5000", f"--screenshot={picture}", "--window-size=1280,1200")
    with browser(observed.page, tmp_path, *flags):
        assert picture.stat().st_size > 30_000


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.timeout(180)
def test_the_page_stays_when_the_run_is_over(runs, tmp_path):
    observed = Observed(runs, "--epochs=2", "--stay")
    for worker in observed.workers:
        assert worker.wait() == 0
    observed.coordinator.until("all members finished")
    view = observed.view()
    assert view["state"] == "ended"
    assert view["accuracy"]["averaged"] > 0
    found = samples(ask(observed.page + "metrics"))
    accuracy = {labels["model"]: v for labels, v in found["washp2p_population_accuracy_percent"]}
    assert accuracy == {k: view["accuracy"][k] for k in ("ensemble", "averaged", "greedy_soup")}
    # Members' last words: all bytes of their exchanges, as in the summary.
    exchanged = sum(row["payload"] + row["header"] for row in observed.coordinator.summary["bytes"])
    assert view["totals"]["sent"]["exchange"] == exchanged
    with browser(observed.page, tmp_path, "--virtual-time-budget=3000", "--dump-dom") as seen:
        assert "Averaged, test %" in seen.stdout
    observed.coordinator.process.send_signal(signal.SIGTERM)
    assert observed.coordinator.wait() == 0


def test_a_member_that_was_dropped_and_comes_again_is_said_to(runs):
    observed = Observed(runs, *LONG, "--patience=1")
    observed.coordinator.until('"epoch": 2')
    worker = observed.workers[1]
    os.kill(worker.process.pid, signal.SIGSTOP)
    dropped = json.loads(observed.coordinator.until('"event": "dropped"'))
    os.kill(worker.process.pid, signal.SIGCONT)
    again = json.loads(observed.coordinator.until('"event": "rejoined"'))
    assert again["member"] == 3
    assert f"as member {dropped['member']} it was dropped" in again["message"]
    eventually(lambda: sum(observed.view()["totals"]["lost"].values()))
    assert set(observed.view()["totals"]["lost"]) <= {"sender dropped", "link broken"}
    assert (
        "member 3"
        in eventually(lambda: [e for e in events_of(worker.text) if e["member"] == 3])[0]["message"]
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--http=0.0.0.0:8080"], "not on loopback"),
        (["--http=nowhere"], "expected HOST:PORT"),
        (["--stay"], "add --http"),
        (["--log=xml"], "invalid choice: 'xml'"),
    ],
)
def test_flags_that_cannot_work_are_named(runs, flags, words):
    coordinator = runs.coordinator("--n=2", *flags)
    assert coordinator.wait() == 2
    assert words in coordinator.text
    assert len(coordinator.text.splitlines()) == 1


def test_a_run_whose_page_could_not_be_served_can_be_started_again(runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        coordinator = runs.coordinator("--n=2", f"--http=127.0.0.1:{port}")
        assert coordinator.wait() == 2
        assert f"cannot listen at 127.0.0.1:{port}" in coordinator.text
    again = runs.coordinator("--n=2", "--http=127.0.0.1:*")
    again.until("2 members wanted")


@pytest.mark.timeout(120)
def test_a_coordinator_that_is_moved_hands_the_run_over(runs):
    """As a cluster does: SIGTERM, and another one in the same run folder."""
    flags = ("--epochs=60", "--lr=0.02", "--hand-over")
    first, workers = runs.population(3, *flags)
    first.until("epoch 2")
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 130
    assert "left the run: another coordinator with this --run-dir goes on with it" in first.text
    second = runs.coordinator("--hand-over", bind=first.address)
    assert second.wait(100) == 0, second.text
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert second.summary["rounds"] == 60 * 40
    assert second.summary["departed"] == []
