"""Plans ahead of need: derived on a background thread from the seeds that have arrived.

NumPy does the work in blocks and gives the GIL up in between; the training thread finds its plan
ready. Touches no parameter and no socket.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

P = TypeVar("P")
AHEAD = 4
"""Plans that are kept ready."""


class Planner(Generic[P]):
    """Keeps the next rounds' plans ready. All methods belong to the training thread.

    `derive` makes a plan of a seed, on the planner's thread; `seed_of` tells a round's seed, or
    None if it has not arrived.
    """

    def __init__(self, derive: Callable[[int], P], seed_of: Callable[[int], int | None]) -> None:
        self._derive = derive
        self._seed_of = seed_of
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="washp2p plans")
        self._futures: dict[int, Future[P]] = {}

    def take(self, number: int) -> P:
        """The plan of round `number`, whose seed has arrived. Blocks until it is derived."""
        self._futures = {k: future for k, future in self._futures.items() if k >= number}
        self._submit(number)
        for ahead in range(number + 1, number + 1 + AHEAD):
            self._submit(ahead)
        return self._futures.pop(number).result()

    def prepare(self) -> None:
        """Begin with the first rounds' plans."""
        for number in range(1, 1 + AHEAD):
            self._submit(number)

    def close(self) -> None:
        """End the thread. Harmless when called twice."""
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, number: int) -> None:
        if number not in self._futures and (seed := self._seed_of(number)) is not None:
            self._futures[number] = self._thread.submit(self._derive, seed)
