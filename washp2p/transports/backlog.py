"""Messages that have arrived before anybody asked for them. No I/O.

There is a limit for each origin: a member, or a connection if the member is not known.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from washp2p.transports.base import Message

MESSAGES = 10_000
BYTES = 256 << 20
"""The limits for one origin. BYTES is raised to four messages of the largest size if need be."""


class Backlog:
    """Messages in the order of arrival; None stands for an interrupt.

    `largest` is the most bytes that a message may have.
    """

    def __init__(self, largest: int = 0) -> None:
        self._room = max(BYTES, 4 * largest)
        self._waiting: deque[tuple[Hashable, Message | None]] = deque()
        self._messages: Counter[Hashable] = Counter()
        self._bytes: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, origin: Hashable, message: Message | None) -> bool:
        """Keep a message. Returns False, and drops it, if too much from `origin` is waiting."""
        size = _size(message)
        waiting = self._messages[origin]
        if waiting >= MESSAGES or (waiting and self._bytes[origin] + size > self._room):
            return False
        self._waiting.append((origin, message))
        self._messages[origin] += 1
        self._bytes[origin] += size
        return True

    def pop(self) -> Message | None:
        """Remove and return the oldest message."""
        origin, message = self._waiting.popleft()
        self._messages[origin] -= 1
        self._bytes[origin] -= _size(message)
        if not self._messages[origin]:
            del self._messages[origin], self._bytes[origin]
        return message

    def forget(self, origin: Hashable) -> None:
        """Drop all messages of an origin."""
        self._waiting = deque(pair for pair in self._waiting if pair[0] != origin)
        del self._messages[origin], self._bytes[origin]


def _size(message: Message | None) -> int:
    return 0 if message is None else message.header.nbytes + message.payload.nbytes
