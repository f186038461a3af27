"""Waits for what a test can only look at from outside: files, pages, other programs."""

from __future__ import annotations

import time

POLL_SECONDS = 0.1
"""The time between two looks at what tells nobody when it changes."""


def eventually(look, seconds=30, tell=lambda: ""):
    """What `look` gives, once that is something. Fails after `seconds`, with what `tell` says."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, tell()
        time.sleep(POLL_SECONDS)
    return found
