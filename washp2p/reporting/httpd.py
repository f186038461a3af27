"""A small HTTP server for status pages and metrics: few threads, short requests, GET only.

`coordinator.watch.web` and `washp2p.metrics` decide what is served. The code here decides who may
ask, and for how long.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[dict[str, list[str]]], tuple[str, bytes]]

AT_ONCE = 32
"""Connections served at a time. A further one is closed immediately."""
ANSWER_SECONDS = 10.0
"""How long a connection may take, from the start of its thread to the last byte."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Service:
    """Answers requests at `address`, a (host, port), until closed. Port 0 means any free port.

    `answers` has a callback for each path. The callback takes the query and returns content type
    and body. It runs on the connection's own thread. It may raise TimeoutError (the client should
    try again) or UsageError (not available here). The constructor raises UsageError if it cannot
    listen; the error names `flag`, the flag that chose the address.
    """

    def __init__(self, address: tuple[str, int], answers: dict[str, Answer], *, flag: str) -> None:
        host, port = address
        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = _Server(address, answers)
        except OSError as error:
            raise UsageError(
                f"cannot listen at {shown}:{port}: {error.strerror}; choose another {flag}"
            ) from None
        self.address = f"http://{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="washp2p http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def is_ours(host: str) -> bool:
    """Whether to answer a request with this `Host` header.

    Only IP addresses, names without a dot and this machine's own name are allowed. Otherwise a web
    page open in a browser here could let its own name resolve to this machine, and so read what is
    served.

    >>> is_ours("127.0.0.1:8080"), is_ours("coordinator:8080"), is_ours("evil.example")
    (True, True, False)
    """
    match = re.fullmatch(r"\[(?P<six>[^]]*)\](:\d*)?|(?P<name>[^:]*)(:\d*)?", host)
    if match is None:
        return False
    name = match["six"] or match["name"] or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        own = {socket.gethostname().lower(), socket.getfqdn().lower()}
        return bool(match["name"]) and ("." not in name.rstrip(".") or name.lower() in own)
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answers: dict[str, Answer]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answers = answers
        self._places = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without resolving this host's name; http.server would resolve it."""
        super(ThreadingHTTPServer, self).server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the request to a thread. Close the connection if AT_ONCE threads are busy."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle the request on its thread. Disconnect a client that takes too long."""
        limit = threading.Timer(ANSWER_SECONDS, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors in a request, such as a client that goes away in the middle."""


def _hang_up(request: socket.socket) -> None:
    with suppress(OSError):  # it has gone
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "washp2p"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a GET request."""
        if not is_ours(self.headers.get("Host", "localhost")):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"ask for an address or localhost\n")
            return
        url = urlsplit(self.path)
        answer = self.server.answers.get(url.path)
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
            return
        try:
            kind, body = answer(parse_qs(url.query))
        except TimeoutError:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"busy, try again\n")
        except UsageError as error:
            self._send(HTTPStatus.NOT_IMPLEMENTED, "text/plain", f"{error}\n".encode())
        else:
            self._send(HTTPStatus.OK, kind, body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
