"""A process's log: one line for each event, as text for people or as JSON for programs.

A JSON line has `time` (UTC), `level`, `run` and `member` (null while not known), `event` (its
kind), `message` (for people), and the event's own fields. The module imports no torch.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from washp2p.runfolder.rundir import to_json

if TYPE_CHECKING:
    import argparse
    from types import TracebackType

FORMATS = ("text", "json")

_log = logging.getLogger("washp2p")


class JsonLines(logging.Formatter):
    """Formats log records as JSON; `context` is added to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, Any] = {"run": None, "member": None}

    def format(self, record: logging.LogRecord) -> str:
        """One log record as a line of JSON."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self.context,
            "event": "log",
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return to_json(values)


class Log:
    """The log of a process. Make it once, at the beginning: it also sets up `logging`."""

    def __init__(self, form: str = "text") -> None:
        self.for_programs = form == "json"
        """Whether lines are JSON."""
        self._json = JsonLines()
        handler = logging.StreamHandler(sys.stdout if self.for_programs else sys.stderr)
        handler.setFormatter(self._json if self.for_programs else logging.Formatter("%(message)s"))
        logging.basicConfig(handlers=[handler])
        if self.for_programs:
            _log.setLevel(logging.INFO)
            sys.excepthook = _last_words

    def about(self, *, run: str | None = None, member: int | None = None) -> None:
        """Name the member and the run in all lines from now on."""
        self._json.context = {"run": run, "member": member}

    def event(self, text: str, what: str, **fields: Any) -> None:
        """Log an event of kind `what`. A text log prints only `text`, on standard output."""
        if self.for_programs:
            _log.info("%s", text, extra={"fields": {"event": what, **fields}})
        else:
            print(text, flush=True)


def add_log_option(parser: argparse._ActionsContainer) -> None:
    """Add the flag for the log's format."""
    parser.add_argument(
        "--log",
        default="text",
        choices=FORMATS,
        help="lines for people, or for programs: JSON, an event each (default: %(default)s)",
    )


def complain(text: str, what: str = "failed") -> None:
    """Log why a program ends: one line on stderr, or in a JSON log."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, JsonLines) for handler in handlers):
        _log.error("%s", text, extra={"fields": {"event": what}})
    else:
        print(text, file=sys.stderr, flush=True)


def message_of(line: str) -> str:
    """The message for people in `line`, a line of a log in either format."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def _last_words(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    what = {"fields": {"event": "crashed"}}
    _log.critical("%s", repr(error), exc_info=(kind, error, traceback), extra=what)
