"""The status page: how a run goes, over HTTP, for looking only. Threads of its own.

    /  page.js  page.css      the page, which needs nothing from elsewhere
    /status.json              as `washp2p status --json`
    /history.json?after=S     points of the population's curves, later than S seconds
    /metrics                  for Prometheus (extra `metrics`)

It asks for what it shows; it decides nothing and changes nothing.
"""

from __future__ import annotations

import json
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from math import inf
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, urlsplit

from coordinator import metrics
from washp2p.endpoints import is_loopback
from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
AT_ONCE = 32
"""Connections; one more is closed at once."""
IDLE_SECONDS = 10
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Source(Protocol):
    """What can be looked at. Its methods are called on the page's threads."""

    def view(self) -> dict[str, Any]:
        """How the run goes now. Raises TimeoutError."""

    def points(self) -> list[dict[str, Any]]:
        """How it has come along. Raises TimeoutError."""


class Page:
    """Serves `source` at an address until closed. Raises UsageError if it cannot listen there."""

    def __init__(self, address: tuple[str, int], source: Source) -> None:
        host, port = address
        try:
            self._server = _Server(host, port, source)
        except OSError as error:
            raise UsageError(
                f"cannot serve the status page at {host}:{port}: {error.strerror}; choose another "
                "--http"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="washp2p page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, source: Source) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.source = source
        self.local = is_loopback(f"tcp://{f'[{host}]' if ':' in host else host}:1")
        self._places = threading.BoundedSemaphore(AT_ONCE)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread answer, if there is one to be had."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """On that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the midst is nobody's concern."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = IDLE_SECONDS
    server_version = "washp2p"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        if not self._is_for_us():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"ask for localhost\n")
            return
        url = urlsplit(self.path)
        answers: dict[str, Callable[[dict[str, list[str]]], tuple[str, bytes]]] = {
            "/status.json": self._status,
            "/history.json": self._history,
            "/metrics": self._metrics,
            **dict.fromkeys(FILES, self._file),
        }
        answer = answers.get(url.path)
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
            return
        try:
            kind, body = answer(parse_qs(url.query))
        except TimeoutError:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the coordinator is busy\n")
        except UsageError as error:
            self._send(HTTPStatus.NOT_IMPLEMENTED, "text/plain", f"{error}\n".encode())
        else:
            self._send(HTTPStatus.OK, kind, body)

    do_HEAD = do_GET  # noqa: N815 - as http.server calls it

    def log_message(self, *_: object) -> None:
        """Requests are not told of."""

    def _is_for_us(self) -> bool:
        """Another site's page in this machine's browser may not look at what is on loopback."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return not self.server.local or host in {"localhost", "127.0.0.1", "[::1]"}

    def _file(self, _: object) -> tuple[str, bytes]:
        name, kind = FILES[urlsplit(self.path).path]
        return kind, files("coordinator").joinpath("page", name).read_bytes()

    def _status(self, _: object) -> tuple[str, bytes]:
        return "application/json", json.dumps(self.server.source.view()).encode()

    def _history(self, query: dict[str, list[str]]) -> tuple[str, bytes]:
        try:
            after = float(query.get("after", ["-inf"])[0])
        except ValueError:
            after = -inf
        points = [point for point in self.server.source.points() if point["seconds"] > after]
        return "application/json", json.dumps(points).encode()

    def _metrics(self, _: object) -> tuple[str, bytes]:
        return metrics.exposition(self.server.source.view())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
