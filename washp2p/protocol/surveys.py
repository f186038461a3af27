"""What a survey of the members' distance from their mean has found."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def consensus_line(
    round_number: int, members: int, squares: Sequence[float], *, exact: bool
) -> dict[str, Any]:
    """A line of consensus.jsonl, plain values.

    `squares` are the members' mean squared Euclidean distances from their mean, by quarter of the
    parameters; `distance` is the root of their sum, `quarters` are those of each; `exact` if not of
    a sample.
    """
    return {
        "round": round_number,
        "members": members,
        "exact": exact,
        "distance": sqrt(sum(squares)),
        "quarters": [sqrt(square) for square in squares],
    }
