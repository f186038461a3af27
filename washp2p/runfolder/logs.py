"""Logs: what happens in a process, a line an event, for people or, as JSON, for programs.

A line of JSON has `time` (UTC), `level`, `run` and `member` (null while not known), `event` (what
kind), `message` (for people), and whatever else belongs to the event. Torch-free.
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
    """Records as lines of JSON; `context` is on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, Any] = {"run": None, "member": None}

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
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
    """Where a process's events go: made once, at its beginning, which sets up `logging`, too."""

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
        """From now on lines are about this member of this run."""
        self._json.context = {"run": run, "member": member}

    def event(self, text: str, what: str, **fields: Any) -> None:
        """Something has happened. For people it is `text` on standard output."""
        if self.for_programs:
            _log.info("%s", text, extra={"fields": {"event": what, **fields}})
        else:
            print(text, flush=True)


def add_log_option(parser: argparse._ActionsContainer) -> None:
    """In what form a program logs."""
    parser.add_argument(
        "--log",
        default="text",
        choices=FORMATS,
        help="lines for people, or for programs: JSON, an event each (default: %(default)s)",
    )


def complain(text: str, what: str = "failed") -> None:
    """Why a program ends: one line on stderr, or in its log if that is for programs."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, JsonLines) for handler in handlers):
        _log.error("%s", text, extra={"fields": {"event": what}})
    else:
        print(text, file=sys.stderr, flush=True)


def message_of(line: str) -> str:
    """What a line of a log says to people, whatever its form."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def _last_words(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    what = {"fields": {"event": "crashed"}}
    _log.critical("%s", repr(error), exc_info=(kind, error, traceback), extra=what)
