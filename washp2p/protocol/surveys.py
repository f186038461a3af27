"""What a survey of the members' distance from their mean has found."""

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
    the parameters. `distance` is the root of the sum, `quarters` the roots of each. `exact` is
    False if only a sample of scalars was compared.
    """
    return {
        "round": round_number,
        "members": members,
        "exact": exact,
        "distance": sqrt(sum(squares)),
        "quarters": [sqrt(square) for square in squares],
    }
