"""Real populations: processes that a test starts, and that end with it."""

from __future__ import annotations

import pytest

from tests.support.processes import Runs


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path)
    yield made
    made.close()
