"""How a member waits: its procedures yield what they wait for, and a driver does the waiting.

A procedure is a generator. It computes and sends until it depends on others, and then yields a
`Wait`. The driver hands over what arrives until the wait is over, and resumes the procedure. One
driver has sockets and a clock (`washp2p.driver`); a test may have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from washp2p.protocol.roster import MemberId

R = TypeVar("R")


def nobody() -> set[MemberId]:
    """Return an empty set: the `peers` of a wait that depends on no peer."""
    return set()


class Wait(NamedTuple):
    """A member waits until `condition()` is True, but no longer than to `deadline`.

    `peers()` returns the members on which the condition depends at present. `deadline` is a time of
    the member's clock, in seconds.
    """

    condition: Callable[[], bool]
    peers: Callable[[], set[MemberId]] = nobody
    deadline: float = inf


@dataclass
class Waiting:
    """A wait under way. All times are of the member's clock."""

    wait: Wait
    began: float
    asked_anew: float
    """When `reported` was last cleared, so that slow peers are reported again."""
    notice: float
    """When people will next be told which peers are waited for."""
    reported: set[MemberId] = field(default_factory=set)
    """Peers that the coordinator was told of, since `asked_anew`."""


Procedure = Generator[Wait, None, R]
"""A generator that does something for a member and yields its waits. Its result is an R."""

Clock = Callable[[], float]
"""A function that returns the time in seconds, by any monotonic clock."""
