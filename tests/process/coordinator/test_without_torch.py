"""The coordinator in an environment that has neither torch nor NumPy: it imports and it serves."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import greet
from tests.support.sources import ROOT
from washp2p.protocol.messages.from_coordinator import Welcome

NEEDED = ("pyzmq", "msgpack", "rich", "markdown-it-py", "mdurl", "pygments")


@pytest.fixture
def bare_python(tmp_path):
    """Runs Python with this project, what the coordinator needs, and nothing else installed."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NEEDED:
        distribution = importlib.metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in distribution.files} - {
            "..",
            "__pycache__",
        }:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    for package in ("washp2p", "coordinator"):
        (site / package).symlink_to(ROOT / package)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return lambda *arguments, **options: subprocess.Popen(
        [sys.executable, "-S", *arguments],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def test_it_has_no_torch_and_needs_none(bare_python):
    code = (
        "from importlib.util import find_spec\n"
        "assert not any(map(find_spec, ('torch', 'numpy', 'workers')))\n"
        "import coordinator.service.server, coordinator.watch.display, washp2p; print('fine')"
    )
    with bare_python("-c", code) as process:
        assert process.communicate(timeout=30)[0].strip() == "fine"


def test_it_welcomes_workers(bare_python, tmp_path):
    ready, ready_fd = os.pipe()
    flags = ["--n=2", "--bind=tcp://127.0.0.1:*", f"--run-dir={tmp_path / 'r'}"]
    with bare_python(
        "-m", "coordinator", *flags, f"--ready-fd={ready_fd}", pass_fds=(ready_fd,)
    ) as process:
        os.close(ready_fd)
        with os.fdopen(ready) as pipe:
            address = pipe.readline().strip()
        answer, dealer = greet(address, version="0+source")
        dealer.close(linger=0)
        process.terminate()
        output = process.communicate(timeout=10)[0]
    assert isinstance(answer, Welcome), output


def test_control_does_not_pull_torch_in():
    code = "import sys, coordinator.service.server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
