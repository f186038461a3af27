"""How a member comes by the state it begins with, and gives its own to those who come later.

At the start all take over the parameters of the roster's first member; in mid-run a newcomer takes
over the whole state of one that lives. Both by state transfer, on the training thread.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from washp2p import points
from washp2p.errors import ProtocolError
from washp2p.lanes import as_bytes
from washp2p.ledger import Kind
from washp2p.rounds import roster_at
from washp2p.runlog import Joined
from washp2p.snapshot import restore, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.connection import Connection
    from washp2p.evaluation.average import Sections
    from washp2p.inbox import Inbox
    from washp2p.rounds import MemberId, Peer, Roster
    from washp2p.snapshot import Snapshot
    from washp2p.store import Store
    from washp2p.timeline import Start
    from washp2p.transfer import Transfer

_log = logging.getLogger("washp2p")


class Entry:
    """One member's entry into the population, and that of its guests."""

    def __init__(
        self, *, connection: Connection, inbox: Inbox, transfer: Transfer, store: Store
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self._transfer = transfer
        self._store = store
        self._served: set[MemberId] = set()

    def start_together(self) -> None:
        """Take over the parameters and buffers of the roster's first member, as all others do.

        Or keep one's own, if each is to begin so. Should that one be lost before training begins,
        the next one's, and so on. A member that cannot reach it gets them from others that have
        them. Blocks until training begins. Raises RunStoppedError.
        """
        own = self._store.sections()
        taken = own
        begun = False
        while not begun:
            self._inbox.drain()  # peers are connected to before anything is sent to them
            roster = self._connection.roster
            points.reach(points.STARTING)
            first = roster.members[0] == self._connection.member
            if first or self._connection.config.init == "different":
                taken = own
            else:
                taken = {name: torch.empty_like(vector) for name, vector in own.items()}
                if not self._fetch_start(roster, taken):
                    continue
            for name, vector in taken.items():
                self._transfer.offer(f"start:{roster.epoch}:{name}", as_bytes(vector), Kind.STATE)
            self._connection.synced(roster.epoch)
            begun = self._wait_for_the_seed_of(1, roster.epoch)
            self._transfer.withdraw("start:")
        if taken is not own:
            self._store.load_sections(taken)

    def _fetch_start(self, roster: Roster, into: Sections) -> bool:
        """The first member's state from it, or from who has it; False if there is a new roster."""
        changed = self._changed(roster.epoch)
        others = [member for member in roster.members if member != self._connection.member]

        def reachable() -> MemberId:
            near = (member for member in others if member not in self._inbox.out_of_reach)
            return next(near, others[0])

        while not changed():
            source = reachable()

            def elsewhere(source: MemberId = source) -> bool:
                return changed() or reachable() != source

            what = f"start:{roster.epoch}"
            if self._inbox.fetch(source, what, into, Kind.STATE, elsewhere):
                return True
        return False

    def go_on_together(self, start: Start, *, rounds: int) -> None:
        """Each has its own state again; the round after `start` is the first, if there is one.

        Blocks until training begins. Raises RunStoppedError.
        """
        connection = self._connection
        first = start.round + 1
        self._inbox.arrivals.begin_after(start.round)
        begun = False
        while not begun:
            self._inbox.drain()
            epoch = connection.roster.epoch
            points.reach(points.STARTING)
            connection.synced(epoch)
            begun = first > rounds > 0 or self._wait_for_the_seed_of(first, epoch)
        connection.seeds.reached = start.round

    def come_in(self) -> Joined:
        """Take over the state of a live member of a run that has begun, and a place in its roster.

        Blocks until this member's first round can follow. Raises RunStoppedError.
        """
        connection = self._connection
        self._inbox.drain()
        while True:
            donor, data = self._fetch_snapshot()
            try:
                taken = restore(self._store, data)
            except ProtocolError as error:
                _log.warning("member %d gave no snapshot: %s", donor.member, error)
                connection.stalled(donor.member)
            else:
                if self._store.is_finite():
                    break
                connection.diverged(donor.member)
            self._inbox.wait_until(partial(self._donor_is_not, donor))
        connection.ready()
        self._inbox.wait_until(lambda: connection.enrolled)
        entry = next(r for r in connection.rosters if connection.member in r.members)
        connection.seeds.reached = entry.first - 1
        self._inbox.arrivals.begin_after(entry.first - 1)
        self._inbox.wait_until(lambda: entry.first in connection.seeds)
        config = connection.config
        if config.max_delay == "none" and config.method != "none" and config.p:
            end = time.monotonic() + connection.patience.seconds  # perhaps nobody sends just now
            self._inbox.wait_until(lambda: self._is_reached(entry.first) or time.monotonic() > end)
        return Joined(entry.epoch, entry.first - 1, donor.member, taken.step)

    @property
    def serves(self) -> bool:
        """Whether a snapshot is on offer."""
        return bool(self._served)

    def serve_guests(self, where: Snapshot) -> None:
        """Give newcomers that ask for it the state of now, just after a step: `where` it is."""
        guests = {guest.member for guest in self._inbox.guests}
        for guest in guests - self._served:
            self._served.add(guest)
            points.reach(points.GIVING)
            blob = memoryview(take(self._store, where))
            self._transfer.offer(f"snapshot:{guest}", blob, Kind.STATE)
        for guest in self._served - guests:
            self._served.remove(guest)
            self._transfer.withdraw(f"snapshot:{guest}")

    def _fetch_snapshot(self) -> tuple[Peer, bytes]:
        """A whole snapshot, from whichever donor lives to give it."""
        limit = self._store.largest_snapshot
        while True:
            donor = self._connection.donor
            assert donor is not None
            self._inbox.link(donor)
            points.reach(points.RECEIVING)
            name = f"snapshot:{self._connection.member}"
            download = self._transfer.fetch(donor.member, name, None, kind=Kind.STATE, limit=limit)
            if self._inbox.wait_for([download], partial(self._donor_is_not, donor)):
                assert download.into is not None
                return donor, bytes(download.into)

    def _is_reached(self, first: int) -> bool:
        """Whether an older member has come to the round `first`, or none is left that could.

        Where nobody waits, one that began windows ahead of the others would make them jump.
        """
        me, arrivals = self._connection.member, self._inbox.arrivals
        members = self._connection.roster.members
        nobody_older = all(member >= me or arrivals.has_ended(member) for member in members)
        return arrivals.newest >= first or nobody_older

    def _donor_is_not(self, donor: Peer) -> bool:
        return self._connection.donor is not donor

    def _wait_for_the_seed_of(self, first: int, epoch: int) -> bool:
        """Block until training begins, or there is another roster; whether it has begun."""
        connection = self._connection
        changed = self._changed(epoch)
        self._inbox.wait_until(lambda: first in connection.seeds or changed())
        return first in connection.seeds and roster_at(connection.rosters, first).epoch == epoch

    def _changed(self, epoch: int) -> Callable[[], bool]:
        return lambda: self._connection.roster.epoch != epoch
