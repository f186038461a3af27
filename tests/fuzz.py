"""A coverage-guided fuzzer (atheris) against the decoders of both planes.

    python -m tests.fuzz MILLIONS

Millions of inputs for each decoder, guided by what they reach of the code; the least that is
allowed is ProtocolError. Records benchmarks/results/fuzz.md. Needs `pip install atheris`, which
`.[test]` leaves out: the Hypothesis suites do in every run what this does for long.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record

TARGETS = ("frames", "control")
LIMIT = 400
"""Bytes of an input: more than any header has, and enough for every message."""


def target(name):
    """The decoder: what goes out of it must be a record that goes in again."""
    import atheris

    with atheris.instrument_imports(include=["washp2p", "msgpack"]):
        from washp2p.errors import ProtocolError
        from washp2p.protocol import layout, roster
        from washp2p.protocol.messages import control, frames

    codec = {"frames": frames.headers, "control": control.messages}[name]

    def one(data: bytes) -> None:
        try:
            found = codec.decode(data)
        except ProtocolError:
            return
        encoded = codec.encode(found)  # NaN does not equal itself, its bytes do
        assert codec.encode(codec.decode(encoded)) == encoded
        match found:
            case control.Attach(layout=wire):
                try:
                    layout.Layout.from_wire(wire)
                except ValueError:
                    return
            case control.NewRoster(generation, first, _, peers):
                roster.Roster.from_rows(generation, first, peers).digest()

    return one


def seeds(name, folder):
    """One example of each kind, so that the fuzzer need not invent msgpack."""
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.support.messages import control_messages, data_headers
    from washp2p.protocol.messages import control, frames

    codec, records = {
        "frames": (frames.headers, data_headers),
        "control": (control.messages, control_messages),
    }[name]

    @settings(
        max_examples=300,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(records)
    def write(one):
        data = codec.encode(one)
        if len(data) <= LIMIT:
            (folder / f"{hash(data) & 0xFFFFFFFF:08x}").write_bytes(data)

    write()


def fuzz(name, runs):
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder)
        seeds(name, corpus)
        first = len(list(corpus.iterdir()))
        began = time.monotonic()
        flags = [f"-runs={runs}", f"-max_len={LIMIT}", "-seed=1", f"-artifact_prefix={folder}/"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", f"--{name}", folder, *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode:
            sys.exit(f"{name} crashed:\n{done.stderr[-4000:]}")
        last = re.findall(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)[-1]
        executions, reached, features, kept = map(int, last)
        assert executions >= runs
        return [name, f"{executions:,}", f"{seconds:.0f}", first, kept, reached, features, 0]


def main() -> None:
    """Fuzz one decoder, or all of them in processes of their own."""
    if sys.argv[1].startswith("--"):
        import atheris

        name = sys.argv.pop(1).removeprefix("--")
        one = target(name)
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()
        return
    runs = round(1e6 * float(sys.argv[1]))
    record(
        "fuzz",
        "What the decoders were fed",
        [
            "decoder",
            "executions",
            "seconds",
            "corpus at first",
            "at last",
            "branches reached",
            "features",
            "crashes",
        ],
        [fuzz(name, runs) for name in TARGETS],
        "libFuzzer by atheris, guided by the coverage of `washp2p` and msgpack's Python part. An "
        "input that is decoded must come out the same when it is encoded and decoded again; a "
        "layout or a roster in it is read, too. Anything but ProtocolError would be a crash.",
    )


if __name__ == "__main__":
    main()
