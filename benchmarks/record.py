"""Running a benchmark from its command line, and recording its table with what made it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from washp2p.protocol.version import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESULTS = Path(__file__).parent / "results"
_folder = RESULTS


def run(main: Callable[[], object] | Mapping[str, Callable[[], object]], *, takes: str) -> int:
    """Run a benchmark from its command line. Returns its exit code.

    `main` is what it does, or several things by name, one of which the command line names. `takes`
    says how long it takes on two cores.
    """
    global _folder  # noqa: PLW0603 - one benchmark is one process
    module = sys.modules["__main__"]
    assert module.__spec__ is not None
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.__spec__.name}",
        description=module.__doc__,
        epilog=f"Takes {takes} on two cores.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not callable(main):
        parser.add_argument("what", choices=main)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder for the table (default: benchmarks/results)",
    )
    options = parser.parse_args()
    _folder = options.out
    code = main() if callable(main) else main[options.what]()
    return code if isinstance(code, int) else 0


def record(
    name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: str
) -> None:
    """Print a Markdown table, and write it to <name>.md with the command and versions."""
    table = [
        "| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)
    ]
    module = sys.modules["__main__"].__spec__
    assert module is not None
    program = module.name.removesuffix(".__main__")
    command = shlex.join(["python", "-m", program, *sys.argv[1:]])
    versions = ", ".join(f"{key} {value}" for key, value in installed().items())
    text = "\n".join(
        [
            f"# {title}",
            "",
            f"Command: `{command}`, {datetime.now(UTC):%Y-%m-%d}",
            "",
            *table,
            "",
            notes,
            "",
            f"Hardware: {_processor()}, {os.cpu_count()} cores. Versions: {versions}.",
            "",
        ]
    )
    print(text)
    _folder.mkdir(parents=True, exist_ok=True)
    (_folder / f"{name}.md").write_text(text)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as tables have them."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def kept(path: Path, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `compute` gave, now or, if it has finished before, then: it is kept at `path`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = compute()
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(result, file)
        Path(file.name).replace(path)
        print(path, result, flush=True)
    found: dict[str, float] = json.loads(path.read_text())
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown CPU")
