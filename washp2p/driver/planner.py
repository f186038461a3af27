"""Derives plans ahead of need, on a background thread, from the seeds that have arrived.

NumPy works in blocks and releases the GIL between them; the training thread finds its plan ready.
Several plans are derived at a time, because waking a thread costs about as much as a small plan.
Touches no parameter and no socket.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

P = TypeVar("P")
S = TypeVar("S")
MOST = 16
"""The most plans that are derived ahead."""
ROOM = 2 << 20
"""Bytes that plans derived ahead may take, except for the very next one."""


class Planner(Generic[S, P]):
    """Keeps the next rounds' plans ready. All methods belong to the training thread.

    `derive` (a `Derivation`) makes a plan. It is called on the planner's thread, in the order of
    rounds. `order_of` (`Conversation.order_of`) returns the argument of `derive` for a round, such
    as its seed; None if the seed has not arrived. `size_of` returns the bytes of a plan.
    """

    def __init__(
        self,
        derive: Callable[[S], P],
        order_of: Callable[[int], S | None],
        size_of: Callable[[P], int],
    ) -> None:
        self._derive = derive
        self._order_of = order_of
        self._size_of = size_of
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="washp2p plans")
        self._ready: dict[int, P] = {}
        self._batches: list[tuple[range, Future[list[P]]]] = []
        self._ahead = 1
        self.cpu_seconds = 0.0
        """CPU time, in seconds, that the planner's thread has spent on plans so far."""

    def take(self, number: int) -> P:
        """The plan of round `number`, whose seed has arrived. Blocks until it is derived."""
        while number not in self._ready and self._batches:
            rounds, future = self._batches.pop(0)
            if number < rounds.stop:
                self._ready |= dict(zip(rounds, future.result(), strict=True))
        if number not in self._ready:
            self._ready = {}
            self._submit(number, number + 1)
            self._ready[number] = self._batches.pop(0)[1].result()[0]
        plan = self._ready.pop(number)
        if next(iter(self._ready), number) < number:  # the member has jumped
            self._ready = {later: kept for later, kept in self._ready.items() if later > number}
        self._ahead = max(1, min(MOST, ROOM // max(1, self._size_of(plan))))
        last = self._batches[-1][0].stop if self._batches else number + 1 + len(self._ready)
        if last <= number + 1 + self._ahead // 2:
            self._submit(max(last, number + 1), number + 1 + self._ahead)
        return plan

    def prepare(self, number: int = 1) -> None:
        """Start to derive the plan of round `number`, this member's first one."""
        self._submit(number, number + 1)

    def close(self) -> None:
        """End the thread. Harmless when called twice."""
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, first: int, stop: int) -> None:
        """Start to derive plans of rounds from `first` to `stop` - 1, as far as seeds are here."""
        orders = []
        for number in range(first, stop):
            order = self._order_of(number)
            if order is None:
                break
            orders.append(order)
        if orders:
            future = self._thread.submit(self._derive_all, orders)
            self._batches.append((range(first, first + len(orders)), future))

    def _derive_all(self, orders: list[S]) -> list[P]:
        began = time.thread_time()
        plans = [self._derive(order) for order in orders]
        self.cpu_seconds += time.thread_time() - began
        return plans
