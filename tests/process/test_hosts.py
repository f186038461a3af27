"""Two hosts, as network namespaces with a wire between them: the README's recipe."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.hosts import DEVICE, far_apart, missing, on_a_switch, on_host
from tests.support.processes import start

pytestmark = pytest.mark.skipif(bool(missing()), reason=str(missing()))


def sent_on_wire(host):
    shown = subprocess.run(
        ["ip", "-n", host, "-j", "-s", "link", "show", DEVICE], check=True, capture_output=True
    )
    return json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"]


def run_population(hosts, runs, *flags):
    """A coordinator on the first of two hosts, a worker on each; the coordinator's summary.

    Each writes to a folder of its own: c, 0 and 1.
    """
    (near, address), (far, _) = hosts
    bind = f"tcp://{address}:5555"
    flags = ["--n=2", "--insecure", *flags]
    coordinator = runs.coordinator(*flags, bind=bind, where=on_host(near), name="c")
    workers = [
        runs.worker(bind, "--insecure", name="0", host=near),
        runs.worker(bind, "--insecure", "--bind=tcp://0.0.0.0:*", name="1", host=far),
    ]
    assert [worker.wait() for worker in workers] == [0, 0], coordinator.text
    assert coordinator.wait() == 0, coordinator.text
    return coordinator.summary


def test_two_hosts(runs, tmp_path):
    with on_a_switch(2) as hosts:
        summary = run_population(hosts, runs, "--epochs=2", "--p=0.2")
        wire = sum(sent_on_wire(name) for name, _ in hosts)
    # The coordinator writes what it knows, each host its own member, the first member the average.
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "config.json",
        "journal.sqlite",
        "metrics.jsonl",
        "population.jsonl",
        "summary.json",
    }
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    assert {file.partition("/")[2] for file in files} == {
        "averaged.safetensors",
        "members/0.safetensors",
        "members/1.safetensors",
    }
    data = sum(
        link["payload"] + link["header"] for row in summary["bytes"] for link in row["links"]
    )
    assert data < wire < 2.5 * data + 100_000  # small messages: TCP/IP headers weigh on them
    # No parameter passes through the coordinator: workers sent it next to nothing.
    assert all(row["control"] < 10_000 for row in summary["bytes"])


@pytest.mark.alone
def test_hosts_far_apart_do_not_wait_for_each_other(runs):
    """A round trip of 100 ms: `auto` finds how late rounds must be, and lockstep pays for it."""
    with far_apart(0.05) as hosts:
        summary = run_population(
            hosts, runs, "--epochs=10", "--p=0.05", "--batch-size=8", "--lr=0.02"
        )
    rows = summary["bytes"]
    rounds = summary["rounds"]
    for row in rows:
        step = row["seconds"] / rounds
        assert step < 0.05  # in lockstep a round would take that and the step itself
        assert row["expired_values"] == 0
    # One may be some steps ahead: its peer's values are later by as many, its own less late.
    assert 2 * 0.8 * 0.05 / step <= sum(int(row["max_delay"]) for row in rows) <= 64
    assert rows[0]["applied_values"] == rows[1]["applied_values"] > 0


def test_plain_text_between_hosts_needs_the_users_word():
    with on_a_switch(2) as ((near, address), _):
        process = start(near, "coordinator", "--n=2", f"--bind=tcp://{address}:5555")
        assert "add --insecure" in process.communicate(timeout=30)[0]
        assert process.returncode == 2
