"""The result of a survey: how far the members are from their mean."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def consensus_line(
    round_number: int, members: int, squares: Sequence[float], *, exact: bool
) -> dict[str, Any]:
    """A line of consensus.jsonl, as plain values.

    `squares` has the members' mean squared Euclidean distance from their mean, for each quarter of
    the parameters. In the line, `distance` is the square root of their sum, and `quarters` has the
    square root of each. `exact` is False if only a sample of scalars was compared.
    """
    return {
        "round": round_number,
        "members": members,
        "exact": exact,
        "distance": sqrt(sum(squares)),
        "quarters": [sqrt(square) for square in squares],
    }
