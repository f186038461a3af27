"""All observers of a live run: terminal or log, curves, TensorBoard, HTTP.

An observer cannot delay or end a run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from coordinator.machine.commands import Event, What
from coordinator.watch.history import History
from coordinator.watch.web import Page
from washp2p.errors import UsageError
from washp2p.runfolder import rundir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from coordinator.machine.observation import Observation
    from coordinator.machine.population import Population
    from coordinator.watch.display import Display
    from coordinator.watch.scalars import Scalars

T = TypeVar("T")


class Look(Protocol):
    """Returns a view of the run; with `links`, including the bytes between each pair of members."""

    def __call__(self, *, links: bool) -> dict[str, Any]:
        """Return the view of the run as plain values."""


ANSWER_SECONDS = 5.0
"""How long the page waits for the coordinator's own thread."""
FRESH_SECONDS = 0.4
"""How long a view is used again, however many ask for one."""


class Observers:
    """The observers of one run. Only `view` and `points` may be called on other threads."""

    def __init__(
        self,
        display: Display,
        folder: Path,
        *,
        http: tuple[str, int] | None = None,
        scalars: Scalars | None = None,
    ) -> None:
        self._display = display
        self._folder = folder
        self._http = http
        self._scalars = scalars
        self._damaged = ""
        try:
            self._history = History(rundir.read_lines(folder / rundir.POPULATION))
        except (KeyError, TypeError, ValueError, OSError) as error:
            self._damaged = f"{folder / rundir.POPULATION} is damaged ({error!r:.80})"
            self._history = History([])
        self._page: Page | None = None
        self._look: Look
        self._observation: Observation | None = None
        self._failing: set[str] = set()
        self._seen: dict[str, Any] = {}
        self._seen_at = -inf
        self._seen_by_all = threading.Lock()

    def open(self, look: Look, observation: Observation) -> None:
        """Start the status page, if there is to be one. Call it in a running event loop.

        Raises UsageError if the page cannot listen at its address.
        """
        self._look, self._observation = look, observation
        self._loop = asyncio.get_running_loop()
        if self._damaged:
            text = f"{self._damaged}: its curves begin anew, the run goes on"
            self.event(Event(text, What.DISK))
        if self._http is not None:
            self._page = Page(self._http, self)
            self.event(Event(f"status page at {self._page.address}/", What.LISTENING))

    def close(self) -> None:
        """End all observers."""
        if self._page is not None:
            self._page.close()
        self._plot(lambda scalars: scalars.close())

    def event(self, event: Event) -> None:
        """Show an event."""
        if self._observation is not None:
            self._observation.event(event, time.time())
        self._display.event(event)

    def metrics(self, values: dict[str, Any]) -> None:
        """Show a member's line of metrics, and append it to metrics.jsonl."""
        self._display.metrics(values)
        self._append(rundir.METRICS, values)
        self._plot(lambda scalars: scalars.metrics(values))

    def measured(self, values: dict[str, Any]) -> None:
        """Append a survey's result to consensus.jsonl, and plot it."""
        self._append(rundir.CONSENSUS, values)
        self._plot(lambda scalars: scalars.measured(values))

    def rewind(self, round_number: int) -> None:
        """Delete the records that a run which goes on from `round_number` will write again."""
        self._history.rewind(round_number)
        try:
            rundir.trim_lines(self._folder, round_number)
        except UsageError as error:
            self.event(Event(f"some lines of metrics will be there twice: {error}", What.DISK))

    def tick(self, population: Population) -> None:
        """Update what is shown. A failure is reported once, and does not end the run."""
        assert self._observation is not None
        try:
            self._look_on(self._observation, population)
        except Exception as error:  # whoever looks on must not end a run
            if "tick" not in self._failing:
                self._failing.add("tick")
                text = f"the run goes on without its curves or display: {error!r:.200}"
                self.event(Event(text, What.DISK))

    def _look_on(self, observation: Observation, population: Population) -> None:
        if population.publication.begun and not population.ended:
            now = time.monotonic()
            if self._history.due(now):
                point = self._history.add(observation.point(population), now)
                self._append(rundir.POPULATION, {"at": round(time.time(), 3), **point})
                self._plot(lambda s: s.point(point, self._look(links=False)["members"]))
        if self._display.is_live:
            self._display.show(self._look(links=False))

    def end(self, summary: dict[str, Any]) -> None:
        """Show the summary of the finished run."""
        self._display.end(summary)

    # On the page's threads

    def view(self) -> dict[str, Any]:
        """The run's view, at most FRESH_SECONDS old. Raises TimeoutError after ANSWER_SECONDS."""
        with self._seen_by_all:
            if time.monotonic() - self._seen_at > FRESH_SECONDS:
                self._seen = self._ask(lambda: self._look(links=True))
                self._seen_at = time.monotonic()
            return self._seen

    def points(self) -> list[dict[str, Any]]:
        """The points of the curves. Raises TimeoutError after ANSWER_SECONDS."""
        return self._ask(lambda: list(self._history.points))

    def _ask(self, what: Callable[[], T]) -> T:
        async def answer() -> T:
            return what()

        future = asyncio.run_coroutine_threadsafe(answer(), self._loop)
        try:
            return future.result(ANSWER_SECONDS)
        except TimeoutError:
            future.cancel()
            raise

    def _plot(self, what: Callable[[Scalars], None]) -> None:
        """Have `what` write to TensorBoard's files. After a failure nothing more is written."""
        if self._scalars is not None:
            try:
                what(self._scalars)
            except Exception as error:  # its writer is not ours; nor may it end the run
                self._scalars = None
                text = f"no more is written for TensorBoard: {error!r:.200}; the run goes on"
                self.event(Event(text, What.DISK))

    def _append(self, name: str, values: dict[str, Any]) -> None:
        """Append a line to the file `name`. A line that cannot be written is lost.

        A lost line is reported, unless the line before it was lost too.
        """
        try:
            rundir.append_line(self._folder / name, values)
        except OSError as error:
            if name not in self._failing:
                self._failing.add(name)
                text = f"lines of {name} are lost: {error.strerror}; the run goes on"
                self.event(Event(text, What.DISK))
        else:
            self._failing.discard(name)
