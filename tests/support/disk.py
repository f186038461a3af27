"""Disks that are full."""

from __future__ import annotations

import resource
from contextlib import contextmanager


@contextmanager
def files_no_larger_than(size):
    """As if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
