"""Populations on one host, and on hosts of their own."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.support.faults import Hosts, no_iptables
from tests.support.hosts import missing, on_a_switch


@pytest.fixture
def here(tmp_path):
    """All on this machine's loopback."""
    made = Hosts(tmp_path)
    yield made
    made.close()


@pytest.fixture
def apart(tmp_path):
    """Each worker on a host of its own, whose link can be cut."""
    if (reason := missing() or no_iptables()) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        made = Hosts(tmp_path, stack.enter_context(on_a_switch(5)))
        stack.callback(made.close)
        yield made
