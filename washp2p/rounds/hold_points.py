"""Named points in a member's life, where a test can hold the member.

Only tests set `reach`. In every other process it does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

JOINING = "joining"
"""The member has its MemberId and has not presented its model."""
STARTING = "starting"
"""Knows the population, has neither fetched the initial state nor offered it to others."""
BEFORE_SEND = "before send"
"""Has gathered a round, has sent nothing of it."""
AFTER_SEND = "after send"
"""Has posted a round, has not waited for the values of others."""
APPLYING = "applying"
"""Has waited for the values of others, has applied none of them."""
GIVING = "giving"
"""Is asked for a snapshot, has not taken it."""
RECEIVING = "receiving"
"""Is about to fetch a snapshot."""
AVERAGING = "averaging"
"""Its rounds are over, it is about to average."""
EVALUATING = "evaluating"
"""Is the member that has to evaluate the population, has not begun to."""


def _pass_by(point: str, number: int) -> None:
    pass


reach: Callable[[str, int], None] = _pass_by
"""A function that is called with the point that a member has reached, and the round, or 0."""
