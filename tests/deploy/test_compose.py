"""The compose files on a real engine: a population in containers, from its keys to its report."""

from __future__ import annotations

import json
import re
import shutil
import time
from urllib.parse import quote

import pytest

from tests.support.containers import DEPLOY, Project, missing, ran
from tests.support.sources import ROOT

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # the first one builds the images
]
COUNTERS = ROOT / "tests" / "deploy" / "counters.yaml"
LINKS = ("exchange", "state transfer", "final average")


@pytest.mark.parametrize("variant", ["", "compose.gpu.yaml", "compose.monitoring.yaml"])
def test_every_variant_is_valid(variant, tmp_path):
    project = Project(filter(None, ("compose.yaml", variant)), tmp_path)
    shown = project.compose("config")
    assert "--keys=/run/secrets/join.key" in shown
    if variant == "compose.gpu.yaml":
        assert re.findall(r"device_ids:\s+- ['\"](\d)['\"]", shown) == ["0", "1", "2", "3"]


def test_the_images_are_small_and_nobody_is_root(images):
    config = {
        name: json.loads(ran("docker", "inspect", image))[0] for name, image in images.items()
    }
    for each in config.values():
        assert each["Config"]["User"] == "washp2p"
        assert each["Config"]["Healthcheck"]["Test"]
    assert config["coordinator"]["Size"] < 350e6
    code = "import importlib.util as u; print([m for m in ('torch', 'numpy') if u.find_spec(m)])"
    run = ("docker", "run", "--rm", "--entrypoint")
    assert ran(*run, "python", images["coordinator"], "-c", code).strip() == "[]"
    assert ran(*run, "id", images["worker"], "-u").strip() == "10001"


def test_a_population_trains_to_the_end_and_its_bytes_are_the_interfaces(project):
    population = project("compose.yaml", COUNTERS, N="3", FLAGS="--epochs=12 --p=0.3")
    population.compose("up", "-d", "--scale", "worker=3")
    assert population.until(lambda view: view["state"] == "training")
    assert population.exit_codes("coordinator") == [0]
    assert population.exit_codes("worker") == [0, 0, 0]
    report = json.loads(population.on_volume("washp2p", "report", "--json", "runs/run"))
    assert report["averaged_over"] == [0, 1, 2]
    assert report["accuracy"]["averaged"] > 90
    wires = {link["wire"] for row in report["bytes"] for link in row["links"]}
    assert wires == {"tcp"}  # each container has a network of its own
    counters = {}
    for container in population.containers("worker"):
        text = population.logs(container)
        member = int(re.search(r"member (\d+) of run run", text)[1])
        counters[member] = int(re.search(r"sent (\d+)", text)[1])
    for row in report["bytes"]:
        data = row["control"] + sum(x["payload"] + x["header"] for x in row["links"])
        messages = sum(x["messages"] for x in row["links"])
        # ZeroMQ and CURVE add 42 bytes to a message, TCP/IP 66 to a segment and to what it
        # acknowledges of two peers; pings and handshakes come on top.
        assert data < counters[row["member"]] < 1.06 * data + messages * (42 + 3 * 66) + 200_000
    assert report["bytes"][0]["payload"] == report["bytes"][0]["expected_payload"]
    files = population.on_volume("find", "runs/run", "-name", "*.safetensors").split()
    assert sorted(files) == [
        "runs/run/averaged.safetensors",
        *(f"runs/run/members/{member}.safetensors" for member in range(3)),
    ]


def test_containers_come_and_go_and_a_stopped_run_goes_on(project):
    flags = "--min-n=3 --epochs=200 --lr=0.02 --patience=2 --checkpoint-epochs=3"
    population = project("compose.yaml", N="4", FLAGS=flags)
    population.compose("up", "-d", "--scale", "worker=3")
    population.until(lambda view: view["round"] > 100)
    lost, cut, _ = population.containers("worker")
    ran("docker", "kill", lost)
    population.until(lambda view: len(view["departed"]) == 1)
    network = f"{population.name}_population"
    ran("docker", "network", "disconnect", network, cut)
    before = population.until(lambda view: len(view["departed"]) == 2 and view)
    population.compose("up", "-d", "--no-recreate", "--scale", "worker=4")
    ran("docker", "network", "connect", network, cut)

    def all_are_back(view):
        members = [m for m in view["members"] if m["state"] == "enrolled" and m["round"]]
        return len(members) == 4 and view

    after = population.until(all_are_back)
    assert after["generation"] >= before["generation"] + 3
    assert sum(after["totals"]["lost"].values()) > 0
    assert {why for why, count in after["totals"]["lost"].items() if count} <= {
        "sender dropped", "link broken", "sender skipped the round",
    }  # fmt: skip
    events = [event["event"] for event in after["events"]]
    assert {"joined", "dropped", "entered", "snapshot"} <= set(events)

    def kept():
        """Whose checkpoints there are, by round."""
        found = population.on_volume("find", "runs/run/checkpoints", "-name", "*.safetensors")
        files = re.findall(r"checkpoints/(\d+)/(\d+)\.safetensors", found)
        return {at: {who for when, who in files if when == at} for at, _ in files}

    population.until(lambda _: any(len(who) == 4 for who in kept().values()))
    # Stopped: within the ten seconds that Docker gives, checkpoints being kept.
    began = time.monotonic()
    population.compose("stop")
    assert time.monotonic() - began < 10
    assert population.exit_codes("coordinator") == [130]
    assert set(population.exit_codes("worker")) <= {130, 1}
    assert any(len(who) == 4 for who in kept().values())
    # Going on: all four, from there, to the end.
    population.compose("up", "-d", "--scale", "worker=4", MODE="resume")
    assert population.exit_codes("coordinator") == [0], population.compose("logs", "coordinator")
    summary = json.loads(population.file("run/summary.json"))
    assert len(summary["averaged_over"]) == 4
    assert summary["rounds"] == 200 * 40


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_finds_all_and_every_panel_of_the_dashboard_has_something_to_show(
    project, prometheus_image
):
    config = "deploy/monitoring/prometheus.yml"
    ran("promtool", "check", "config", config, cwd=ROOT)
    population = project(
        "compose.yaml",
        "compose.monitoring.yaml",
        N="3",
        FLAGS="--epochs=3000 --lr=0.005",
        PROMETHEUS_IMAGE=prometheus_image,
        PROMETHEUS_PORT="0",
    )
    population.compose("up", "-d", "--scale", "worker=3", "coordinator", "worker", "prometheus")
    population.until(lambda view: view["distance"] and view["held_out"])

    def healthy(_):
        containers = population.containers("coordinator") + population.containers("worker")
        states = [population.inspect(each)["State"]["Health"]["Status"] for each in containers]
        return states == ["healthy"] * 4

    population.until(healthy)

    def ask(path):
        return json.loads(population.ask("prometheus", 9090, f"api/v1/{path}"))["data"]

    def scraped(_):
        targets = ask("targets")["activeTargets"]
        return sorted(t["labels"]["job"] for t in targets if t["health"] == "up") == [
            "coordinator", "worker", "worker", "worker",
        ]  # fmt: skip

    population.until(scraped)
    board = json.loads((DEPLOY / "monitoring/dashboards/washp2p.json").read_text())
    source = (DEPLOY / "monitoring/provisioning/datasources/prometheus.yml").read_text()
    for panel in board["panels"]:
        assert f"uid: {panel['datasource']['uid']}" in source
        for target in panel["targets"]:
            query = target["expr"].replace("$run", ".*").removesuffix(" or vector(0)")
            population.until(lambda _, q=query: result_of(ask, q))
    (variable,) = board["templating"]["list"]
    assert variable["query"]["query"] == "label_values(washp2p_population_round, run)"
    assert result_of(ask, "washp2p_population_round")[0]["metric"]["run"] == "run"


def result_of(ask, query):
    found = ask(f"query?query={quote(query)}")["result"]
    assert isinstance(found, list)
    return found
