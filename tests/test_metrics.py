"""A member in Prometheus's format: what it last said of itself."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.coordinator.test_observation import vitals
from washp2p.errors import UsageError
from washp2p.metrics import Exporter


@pytest.fixture
def exporter():
    made = Exporter("127.0.0.1:*")
    yield made
    made.close()


def scrape(exporter):
    with urllib.request.urlopen(exporter.address, timeout=10) as answer:
        return answer.read().decode()


def member(told):
    """All of a member that is asked for."""
    return SimpleNamespace(id=2, members=(0, 2, 5), vitals=told)


TOLD = vitals(
    steps=7,
    distance=9.0,
    sent=[(0, "exchange", "tcp", 100), (5, "exchange", "ipc", 50), (0, "final average", "tcp", 9)],
    refused_messages={"malformed": 1},
)


def test_it_tells_what_its_member_last_said(exporter):
    assert scrape(exporter) == ""
    exporter.watch(member(None), "run")
    assert "washp2p_info{" in scrape(exporter)
    exporter.watch(member(TOLD), "run")
    found = {}
    for family in text_string_to_metric_families(scrape(exporter)):
        for sample in family.samples:
            assert (sample.labels.pop("run"), sample.labels.pop("member")) == ("run", "2")
            found[(sample.name, *dict(sorted(sample.labels.items())).values())] = sample.value
    assert found[("washp2p_rounds_total",)] == 7
    assert found[("washp2p_wait_seconds_total",)] == 0.5
    assert found[("washp2p_plan_seconds_total",)] == 0.1
    assert found[("washp2p_delay_rounds",)] == 1.5
    assert found[("washp2p_delay_bound_rounds",)] == 3
    assert found[("washp2p_consensus_distance",)] == 3.0
    assert found[("washp2p_members",)] == 3
    assert found[("washp2p_epoch",)] == 0
    assert found[("washp2p_sent_bytes_total", "exchange", "0", "tcp")] == 100
    assert found[("washp2p_sent_bytes_total", "exchange", "5", "ipc")] == 50
    assert found[("washp2p_lost_values_total", "link broken")] == 3
    assert found[("washp2p_lost_values_total", "too late")] == 0
    assert found[("washp2p_refused_messages_total", "malformed")] == 1
    assert found[("washp2p_refused_messages_total", "sent again")] == 0


def test_what_nobody_knows_is_not_told(exporter):
    exporter.watch(member(vitals(max_delay="none")), "run")
    text = scrape(exporter)
    assert "washp2p_delay_bound_rounds{" not in text
    assert "washp2p_consensus_distance{" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_names_follow_prometheus_conventions(exporter):
    exporter.watch(member(TOLD), "run")
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=scrape(exporter),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_listens_off_loopback_only_if_told_to(exporter):
    with pytest.raises(UsageError, match="not on loopback"):
        Exporter("0.0.0.0:0")
    port = exporter.address.split(":")[2].partition("/")[0]
    with pytest.raises(UsageError, match=r"cannot serve metrics at .* choose another --metrics"):
        Exporter(f"127.0.0.1:{port}")
