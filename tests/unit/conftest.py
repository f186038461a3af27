"""The unit tier: no process, and no socket but `memory://`. A test that makes one fails."""

from __future__ import annotations

import contextlib
import subprocess
from multiprocessing.process import BaseProcess

import pytest
import zmq

with contextlib.suppress(ImportError):
    import matplotlib.font_manager  # noqa: F401 - on a new machine this lists the fonts, by a process


def pytest_collection_modifyitems(items):
    """End a test that hangs by a signal: to write the stacks of all threads may deadlock while
    hypothesis watches the garbage collector.
    """
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(method="signal"))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Neither processes nor ZeroMQ sockets beyond this process; the tier for those is `process`."""

    def refuse(*_, **__):
        pytest.fail("a unit test may not start processes; move it to tests/process")

    def within(method):
        def call(socket, address, *more):
            if not str(address).startswith("inproc://"):
                pytest.fail("a unit test may not use sockets; move it to tests/process")
            return method(socket, address, *more)

        return call

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(BaseProcess, "start", refuse)
    for name in ("bind", "connect"):
        monkeypatch.setattr(zmq.Socket, name, within(getattr(zmq.Socket, name)))
