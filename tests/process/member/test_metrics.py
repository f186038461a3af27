"""A member in Prometheus's format: what it last said of itself."""

from __future__ import annotations

import gc
import shutil
import subprocess
import urllib.error
import urllib.request
import weakref

import pytest

from tests.support.machine import vitals
from tests.support.prometheus import samples, series
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


class Member:
    """All of a member that is asked for."""

    id, members = 2, (0, 2, 5)

    def __init__(self, vitals):
        self.vitals = vitals


TOLD = vitals(
    steps=7,
    distance=9.0,
    sent=[(0, "exchange", "tcp", 100), (5, "exchange", "ipc", 50), (0, "final average", "tcp", 9)],
    refused_messages={"malformed": 1},
)


def test_it_tells_what_its_member_last_said(exporter):
    assert scrape(exporter) == ""
    member = Member(None)
    exporter.watch(member, "run")
    assert "washp2p_info{" in scrape(exporter)
    member.vitals = TOLD
    text = scrape(exporter)
    assert {(m["run"], m["member"]) for rows in samples(text).values() for m, _ in rows} == {
        ("run", "2")
    }
    found = series(text, "run", "member")
    assert found[("washp2p_rounds_total",)] == 7
    assert found[("washp2p_wait_seconds_total",)] == 0.5
    assert found[("washp2p_plan_seconds_total",)] == 0.1
    assert found[("washp2p_delay_rounds",)] == 1.5
    assert found[("washp2p_delay_bound_rounds",)] == 3
    assert found[("washp2p_consensus_distance",)] == 3.0
    assert found[("washp2p_members",)] == 3
    assert found[("washp2p_generation",)] == 0
    assert found[("washp2p_sent_bytes_total", "exchange", "0", "tcp")] == 100
    assert found[("washp2p_sent_bytes_total", "exchange", "5", "ipc")] == 50
    assert found[("washp2p_lost_values_total", "link broken")] == 3
    assert found[("washp2p_lost_values_total", "too late")] == 0
    assert found[("washp2p_refused_messages_total", "malformed")] == 1
    assert found[("washp2p_refused_messages_total", "sent again")] == 0


def test_what_nobody_knows_is_not_told(exporter):
    member = Member(vitals(max_delay="none"))
    exporter.watch(member, "run")
    text = scrape(exporter)
    assert "washp2p_delay_bound_rounds{" not in text
    assert "washp2p_consensus_distance{" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_names_follow_prometheus_conventions(exporter):
    member = Member(TOLD)
    exporter.watch(member, "run")
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
    with pytest.raises(UsageError, match=r"cannot listen at .* choose another --metrics"):
        Exporter(f"127.0.0.1:{port}")


def test_a_member_that_is_no_more_is_not_kept_by_being_watched(exporter):
    member = Member(TOLD)
    gone = weakref.ref(member)
    exporter.watch(member, "run")
    del member
    gc.collect()
    assert gone() is None
    assert scrape(exporter) == ""


def test_another_sites_page_may_not_look(exporter):
    request = urllib.request.Request(exporter.address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=10)
