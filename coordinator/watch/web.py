"""The status page: shows over HTTP how a run goes.

    /  page.js  page.css      the page, which needs nothing from elsewhere
    /status.json              as `washp2p status --json`
    /history.json?after=S     points of the population's curves, later than S seconds
    /metrics                  for Prometheus (extra `metrics`)

The page asks a `Source` for what it shows. It decides nothing and changes nothing.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.watch import metrics
from washp2p.reporting.httpd import Service

if TYPE_CHECKING:
    Query = dict[str, list[str]]

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


class Source(Protocol):
    """What the page shows. Its methods are called on the page's threads."""

    def view(self) -> dict[str, Any]:
        """The run's view, at most a moment old. Raises TimeoutError if no answer comes in time."""

    def points(self) -> list[dict[str, Any]]:
        """The points of the curves. Raises TimeoutError if no answer comes in time."""


class Page(Service):
    """Serves `source` at an address until closed. Raises UsageError if it cannot listen there."""

    def __init__(self, address: tuple[str, int], source: Source) -> None:
        self._source = source
        answers = {path: partial(_file, *named) for path, named in FILES.items()}
        super().__init__(
            address,
            {
                **answers,
                "/status.json": self._status,
                "/history.json": self._history,
                "/metrics": lambda _: metrics.exposition(source.view()),
            },
            flag="--http",
        )

    def _status(self, _: Query) -> tuple[str, bytes]:
        return "application/json", json.dumps(self._source.view()).encode()

    def _history(self, query: Query) -> tuple[str, bytes]:
        try:
            after = float(query.get("after", ["-inf"])[0])
        except ValueError:
            after = -inf
        points = [point for point in self._source.points() if point["seconds"] > after]
        return "application/json", json.dumps(points).encode()


def _file(name: str, kind: str, _: Query) -> tuple[str, bytes]:
    return kind, files("coordinator.watch").joinpath("page", name).read_bytes()
