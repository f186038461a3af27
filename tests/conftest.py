"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from itertools import count

import pytest
import torch

pytest.register_assert_rewrite("tests.support")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, by all
torch.set_num_threads(1)  # results to the bit depend on it; workers are tested with one thread too


_numbers = count()


@pytest.fixture
def memory_address():
    return lambda: f"memory://{next(_numbers)}"
