"""Named points in a member's life, where a test can hold the member.

Only tests set `reach`. In every other process it does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

JOINING = "joining"
"""Has its MemberId, has not shown its model."""
STARTING = "starting"
"""Knows the population, has not fetched the first state, or serves it."""
BEFORE_SEND = "before send"
"""Has gathered a round, has sent nothing of it."""
AFTER_SEND = "after send"
"""Has posted a round, has not waited for what comes."""
APPLYING = "applying"
"""Has what it waited for, has applied nothing of it."""
GIVING = "giving"
"""Is asked for a snapshot, has not taken it."""
RECEIVING = "receiving"
"""Is about to fetch a snapshot."""
AVERAGING = "averaging"
"""Its rounds are over, it is about to average."""
EVALUATING = "evaluating"
"""It falls to it to evaluate the population, and it has not begun."""


def _pass_by(point: str, number: int) -> None:
    pass


reach: Callable[[str, int], None] = _pass_by
"""Called with the point that the member has reached, and its round; 0 if it has none."""
