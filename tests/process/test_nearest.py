"""The nearest wire for every pair: two members on each of two hosts, in one population."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.support.hosts import missing, on_a_switch, on_host
from tests.support.processes import linked_by, replay, simulated
from washp2p.sockets import keys

pytestmark = pytest.mark.skipif(bool(missing()), reason=str(missing()))

OPTIONS = {"epochs": 2, "seed": 5, "p": 0.2, "max_delay": "0"}


@pytest.mark.parametrize(
    ("transport", "encrypted", "wire"),
    [
        ("auto", False, "ipc"),
        ("auto", True, "ipc"),
        ("torch", False, "gloo"),
        ("torch", True, "ipc"),
    ],
)
def test_a_mixed_population_equals_the_simulation(runs, tmp_path, transport, encrypted, wire):
    links = ["--insecure"]
    if encrypted:
        keys.make(tmp_path / "keys")
        links = [f"--keys={tmp_path / 'keys'}"]
    with on_a_switch(2) as ((near, address), (far, _)):
        bind = f"tcp://{address}:5555"
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
        flags += ["--n=4", f"--transport={transport}", *links]
        coordinator = runs.coordinator(*flags, bind=bind, where=on_host(near))
        workers = [runs.worker(bind, *links, host=host) for host in (near, near, far, far)]
        assert [worker.wait() for worker in workers] == [0] * 4, coordinator.text
        assert coordinator.wait() == 0, coordinator.text
    members = [int(worker.text.partition("member ")[2].partition(" ")[0]) for worker in workers]
    folder, _ = simulated(tmp_path, n=4, **OPTIONS)
    for name in ["averaged", *(f"members/{member}" for member in range(4))]:
        made = (runs.folder / "run", folder)
        mine, theirs = (load_file(d / f"{name}.safetensors") for d in made)
        assert all(mine[key].equal(theirs[key]) for key in theirs), name
    host_of = dict(zip(members, "aabb", strict=True))
    expected = {
        (one, other): wire if host_of[one] == host_of[other] else "tcp"
        for one in members
        for other in members
        if one != other
    }
    assert linked_by(coordinator.summary) == expected


@pytest.mark.parametrize(
    ("asked", "wire"),
    [
        ("--transport=tcp", "tcp"),
        ("--transport=torch", "gloo"),
        ("--transport=torch --max-delay=none", "ipc"),
    ],
)
def test_who_asks_for_a_wire_gets_it_where_it_can_be(runs, asked, wire):
    coordinator, workers = runs.population(2, "--epochs=1", *asked.split())
    assert coordinator.wait(60) == 0, coordinator.text
    assert [worker.wait() for worker in workers] == [0, 0]
    assert set(linked_by(coordinator.summary).values()) == {wire}
    refused = "does without torch.distributed: --max-delay none lets rounds be skipped"
    assert [refused in worker.text for worker in workers] == ["none" in asked] * 2


@pytest.mark.parametrize("late", ["overwrite", "difference"])
def test_late_values_by_torch_are_applied_as_logged(runs, tmp_path, late):
    flags = ("--epochs=4", "--transport=torch", "--max-delay=3", f"--late={late}", "--p=0.1")
    coordinator, workers = runs.population(3, *flags)
    assert coordinator.wait(60) == 0, coordinator.text
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert set(linked_by(coordinator.summary).values()) == {"gloo"}
    assert coordinator.summary["lost_values"] == 0
    assert replay(runs.folder / "run", tmp_path) == []
