"""The run folder: the names of its files, and writing them so that no reader sees half a file.

The files are config.json; metrics.jsonl, population.jsonl and consensus.jsonl (the curves);
summary.json; averaged.safetensors; members/<id>.safetensors; rescued/<id>.safetensors (models of
members whose run was stopped); log/<id>.msgpack (the run log); checkpoints/<round>/<id>.safetensors
(`checkpoints.py`); journal.sqlite (the coordinator's). Other programs rely on these names.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from washp2p.config.config import RunConfig
from washp2p.errors import UsageError

CONFIG, METRICS, POPULATION, CONSENSUS, SUMMARY, AVERAGED, JOURNAL = (
    "config.json",
    "metrics.jsonl",
    "population.jsonl",
    "consensus.jsonl",
    "summary.json",
    "averaged.safetensors",
    "journal.sqlite",
)


def member_file(folder: Path, member: int) -> Path:
    """The path of a member's final model."""
    return folder / "members" / f"{member}.safetensors"


def rescued_file(folder: Path, member: int) -> Path:
    """The path of the model of a member whose run was stopped."""
    return folder / "rescued" / f"{member}.safetensors"


def log_file(folder: Path, member: int) -> Path:
    """The path of a member's run log."""
    return folder / "log" / f"{member}.msgpack"


def check_name(name: str) -> str:
    """Return `name` if it is safe as the name of a run folder. Raises UsageError if it is not."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UsageError(
            f"run name {name!r:.80}; expected 1 to 64 letters, digits, '.', '_' or '-'"
        )
    return name


def default() -> Path:
    """Make a new folder runs/<timestamp> for a run without `--run-dir`, and return its path.

    No other process gets the same folder. Raises UsageError if it cannot be made.
    """
    now = Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for attempt in count(1):
        folder = now if attempt == 1 else now.with_name(f"{now.name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make the run folder {folder}: {error.strerror}; choose another --run-dir"
            ) from None
        return folder
    raise AssertionError


def unfinished(folder: Path) -> bool:
    """Whether a folder has an unfinished run that a new coordinator can go on with."""
    begun = (folder / JOURNAL).exists() and (folder / CONFIG).exists()
    return begun and not (folder / SUMMARY).exists()


def require_unfinished(folder: Path) -> None:
    """Raise UsageError unless a folder has an unfinished run."""
    if not unfinished(folder):
        state = "a run that has finished" if (folder / SUMMARY).exists() else "no run"
        raise UsageError(f"{folder} holds {state}; expected one that was interrupted")


def create(folder: Path, *, go_on: bool = False) -> Path:
    """Make the folder of a run. With `go_on` it may already hold an unfinished run.

    Raises UsageError if the folder cannot be made or holds another run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another --run-dir"
        ) from None
    if (folder / CONFIG).exists() and not (go_on and unfinished(folder)):
        state = "a run" if (folder / SUMMARY).exists() else "a run that has not finished"
        raise UsageError(f"{folder} already holds {state}; choose another --run-dir or remove it")
    return folder


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as JSON, the whole file or nothing."""
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Write the whole file or nothing. With `lasting` it survives a power cut, but takes longer.

    Raises UsageError if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        partial.replace(path)
        for folder in (path.parent, path.parent.parent) if lasting else ():
            _make_last(folder)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UsageError(
            f"cannot write {path}: {error.strerror}; make room or choose another --run-dir"
        ) from None


def reserve(path: Path, size: int) -> None:
    """Reserve `size` bytes on disk for `path`. Raises UsageError."""
    write_bytes(_reserved(path), b" " * size)


def write_reserved(path: Path, values: dict[str, Any]) -> None:
    """Write like `write_json`, into the space that `reserve` reserved for `path`, if any.

    Raises UsageError if it cannot be written.
    """
    pending = _reserved(path)
    data = (json.dumps(values, indent=1) + "\n").encode()
    try:
        with pending.open("r+b") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        pending.replace(path)
        _make_last(path.parent)
    except FileNotFoundError:
        write_bytes(path, data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; make room") from None


def _reserved(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")


def _make_last(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file that have a `round`. Returns [] if there is no file.

    A line that was cut short, because its writer was killed, is left out.
    """
    found = []
    text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            if isinstance(values["round"], int):
                found.append(values)
    return found


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append a record to a .jsonl file as a new line, even if the last line was cut short.

    Raises OSError.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + to_json(values).encode() + b"\n")


def to_json(values: dict[str, Any]) -> str:
    """One line of JSON. JSON has no NaN and no infinities: they become null."""
    return json.dumps(_finite(values), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def trim_lines(folder: Path, round_number: int) -> None:
    """Delete the .jsonl lines that a run will write again when it goes on from `round_number`.

    In consensus.jsonl these are the lines of later rounds; in the other files, also those of
    `round_number` itself.
    """
    for name, told in ((METRICS, 0), (POPULATION, 0), (CONSENSUS, 1)):
        path = folder / name
        if path.exists():
            kept = [v for v in read_lines(path) if v["round"] < round_number + told]
            write_bytes(path, "".join(to_json(v) + "\n" for v in kept).encode())


def read_config(folder: Path) -> RunConfig:
    """The configuration in a run folder.

    Raises UsageError if the folder has no configuration of this version.
    """
    path = folder / CONFIG
    try:
        return RunConfig.from_file(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"cannot read {path}: {error!s:.200}; expected the folder of a run, undamaged"
        ) from None


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a finished run's summary.json, in this version's form.

    Raises UsageError if there is none.
    """
    path = folder / SUMMARY
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        state = "did not finish" if (folder / CONFIG).exists() else "is not a run folder"
        raise UsageError(
            f"{folder} {state}: no {SUMMARY}; expected the --run-dir of a finished run"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not {"accuracy", "bytes", "rounds", "parameters"} <= set(summary):
        raise UsageError(f"{path} is not a summary of this version; expected a run of this version")
    if "epochs" in summary:  # as earlier versions call the rosters
        summary["rosters"] = [
            {"generation": row.pop("epoch"), **row} for row in summary.pop("epochs")
        ]
    return summary
