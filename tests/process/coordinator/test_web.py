"""The status page over real HTTP, of a source that is known."""

from __future__ import annotations

import json
import re
import select
import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress

import pytest

from coordinator.watch.web import Page
from tests.support.machine import Run, vitals
from tests.support.prometheus import samples, series
from washp2p.errors import UsageError
from washp2p.protocol.endpoints import http_address
from washp2p.protocol.messages.from_worker import Metrics, Progress
from washp2p.reporting import httpd


class Source:
    """A population in training."""

    def __init__(self):
        self.run = Run(n=2)
        self.run.start()
        self.run.sync()
        self.run.tell(0, Progress(5))
        self.run.tell(0, Metrics({"loss": 0.5, "held_out": 80}))
        self.run.tell(0, vitals(steps=5, distance=4.0, sent=[(1, "exchange", "tcp", 1000)]))

    def view(self):
        observation = self.run.machine.observation
        more = {"run": 'r"\\', "refused_messages": {"malformed": 2}, "encrypted": False}
        return {**more, **observation.view(self.run.machine.population)}

    def points(self):
        return [{"seconds": float(k), "round": k} for k in range(4)]


@pytest.fixture
def page():
    made = Page(("127.0.0.1", 0), Source())
    yield made
    made.close()


def get(page, path, **headers):
    request = urllib.request.Request(f"{page.address}/{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read()


def test_it_serves_the_page_and_what_it_is_made_of(page):
    for path, kind in (("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css")):
        headers, body = get(page, path)
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert body
        assert set(re.findall(rb"https?://[^\"]*", body)) <= {b"http://www.w3.org/2000/svg"}
    assert json.loads(get(page, "status.json")[1])["round"] == 0
    assert [p["round"] for p in json.loads(get(page, "history.json?after=1")[1])] == [2, 3]
    assert len(json.loads(get(page, "history.json?after=x")[1])) == 4


def test_what_is_not_there_is_not_found_and_nothing_can_be_changed(page):
    for path in ("nothing", "../server.py", "page.html", "status.json/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(page, path)
    request = urllib.request.Request(f"{page.address}/", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=10)


def test_another_sites_page_may_not_look(page):
    """Its own name may resolve to this machine: it is not answered under such names."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[x]", "a:b:c"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(page, "status.json", Host=host)
    for host in ("localhost", "127.0.0.2:80", "[::1]", "[::1]:80", "coordinator:8080", "10.1.2.3"):
        assert get(page, "status.json", Host=host)[1]


def test_metrics_are_prometheus_own(page):
    headers, body = get(page, "metrics")
    assert headers["Content-Type"].startswith("text/plain; version=")
    found = series(body.decode(), "run")
    assert found[("washp2p_population_members", "enrolled")] == 2
    assert found[("washp2p_population_consensus_distance",)] == 2.0
    assert found[("washp2p_population_sent_bytes_total", "exchange")] == 1000
    assert found[("washp2p_population_sent_bytes_total", "final average")] == 0
    assert found[("washp2p_population_lost_values_total", "sender dropped")] == 4
    assert found[("washp2p_population_lost_values_total", "too late")] == 0
    assert found[("washp2p_coordinator_refused_messages_total", "malformed")] == 2
    assert found[("washp2p_population_held_out_percent",)] == 80
    told = [labels["run"] for rows in samples(body.decode()).values() for labels, _ in rows]
    assert set(told) == {'r"\\'}


def test_a_busy_coordinator_is_said_to_be(page, monkeypatch):
    def busy(self):
        raise TimeoutError

    monkeypatch.setattr(Source, "view", busy)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(page, "status.json")


@pytest.mark.alone
@pytest.mark.parametrize("trickle", [False, True], ids=["silent", "trickling"])
def test_whoever_only_connects_takes_nobodys_place_for_long(monkeypatch, trickle):
    monkeypatch.setattr(httpd, "ANSWER_SECONDS", 1.0)
    page = Page(("127.0.0.1", 0), Source())
    port = int(page.address.rpartition(":")[2])
    with ExitStack() as stack:
        stack.callback(page.close)
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(httpd.AT_ONCE + 5)
        ]
        open_ = set(idle)
        began = time.monotonic()
        while open_:  # one too many is hung up on at once, the others after a second
            assert time.monotonic() - began < 8
            for connection in select.select(open_, [], [], 0.1)[0]:
                with suppress(ConnectionError):
                    assert connection.recv(1) == b""
                open_.discard(connection)
            for connection in open_ if trickle else ():
                with suppress(ConnectionError):
                    connection.send(b"G")
        assert get(page, "status.json")[1]


def test_where_it_may_be_served():
    assert http_address("127.0.0.1:*", public=False) == ("127.0.0.1", 0)
    assert http_address("[::1]:80", public=False) == ("::1", 80)
    assert http_address("0.0.0.0:80", public=True) == ("0.0.0.0", 80)
    with pytest.raises(UsageError, match=r"not on loopback.*--public"):
        http_address("0.0.0.0:80", public=False)
    for wrong in ("8080", "http://localhost:80", "localhost:", "localhost:99999"):
        with pytest.raises(UsageError, match="expected HOST:PORT"):
            http_address(wrong, public=True)


def test_a_port_that_is_taken_is_named(page):
    port = int(page.address.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port}: Address already in use; choose"):
        Page(("127.0.0.1", port), Source())
