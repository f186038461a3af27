"""How a member gets its initial state, and gives its own to newcomers.

At the start all members take over the parameters of the roster's first member. In mid-run a
newcomer takes over the whole state of a live member. Both use state transfer. The methods that wait
are procedures.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from washp2p.errors import ProtocolError
from washp2p.model.device_copies import as_bytes
from washp2p.model.digests import differing, digests_of
from washp2p.model.optimizers import NATURAL
from washp2p.model.snapshot import open_snapshot, restore, take
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.fields import shortened
from washp2p.protocol.messages.from_worker import Diverged, NoSnapshots, Ready, Synced, Unusable
from washp2p.protocol.roster import roster_at
from washp2p.rounds import hold_points
from washp2p.runfolder.runlog import Joined

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.model.snapshot import Opened, Snapshot
    from washp2p.model.store import State, Store
    from washp2p.protocol.roster import MemberId, Peer, Roster
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane
    from washp2p.rounds.round_loop import Start
    from washp2p.rounds.waiting import Clock, Procedure
    from washp2p.transports.transfer import Transfer

_log = logging.getLogger("washp2p")


class Startup:
    """Brings one member into the population, and gives its state to newcomers."""

    def __init__(
        self,
        *,
        connection: ControlPlane,
        inbox: Inbox,
        transfer: Transfer,
        store: Store,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._inbox = inbox
        self._transfer = transfer
        self._store = store
        self._served: set[MemberId] = set()

    def start_together(self) -> Procedure[None]:
        """Take over the parameters and buffers of the roster's first member, as all members do.

        Under `--init different` the member keeps its own. If the first member is lost before
        training begins, the next one takes its place. A member that cannot reach the first member
        fetches from others that already have its values. Waits until training begins. Raises
        RunStoppedError.
        """
        own = self._store.values()
        taken = own
        begun = False
        while not begun:
            self._inbox.follow()  # peers are connected to before anything is sent to them
            roster = self._connection.state.roster
            hold_points.reach(hold_points.STARTING, 0)
            first = roster.members[0] == self._connection.member
            if first or self._connection.config.training.init == "different":
                taken = own
            else:
                found = yield from self._fetch_start(roster, own)
                if found is None:
                    continue
                taken = found
            self._offer(f"start{roster.generation}", taken)
            self._connection.tell(Synced(roster.generation))
            begun = yield from self._wait_for_the_seed_of(1, roster.generation)
            self._transfer.withdraw(f"start{roster.generation}:")
        if taken is not own:
            self._store.load_values(
                {name: vector for name, vector in taken.items() if vector is not own[name]}
            )

    def _offer(self, what: str, state: State) -> None:
        """Offer tensor k of `state` as the blob `<what>:<k>`, all digests as `<what>:digests`."""
        for number, vector in enumerate(state.values()):
            self._transfer.offer(f"{what}:{number}", as_bytes(vector), Kind.STATE)
        self._transfer.offer(f"{what}:digests", memoryview(digests_of(state)), Kind.STATE)

    def _fetch_start(self, roster: Roster, own: State) -> Procedure[State | None]:
        """Fetch the first member's state. Returns None if a new roster has come. Tensors equal
        to `own` are not fetched.
        """
        changed = self._changed(roster.generation)
        others = [member for member in roster.members if member != self._connection.member]

        def reachable() -> MemberId:
            near = (member for member in others if member not in self._inbox.out_of_reach)
            return next(near, others[0])

        mine = digests_of(own)
        while not changed():
            source = reachable()

            def elsewhere(source: MemberId = source) -> bool:
                return changed() or reachable() != source

            what = f"start{roster.generation}"
            theirs = bytearray(mine)
            row = self._transfer.fetch(
                source, f"{what}:digests", memoryview(theirs), kind=Kind.STATE
            )
            if not (yield from self._inbox.wait_for([row], elsewhere)):
                continue
            numbers = {name: number for number, name in enumerate(own)}
            fresh = {
                name: torch.empty_like(own[name]) for name in differing(own, [mine, bytes(theirs)])
            }
            wanted = {str(numbers[name]): vector for name, vector in fresh.items()}
            if (yield from self._inbox.fetch(source, what, wanted, Kind.STATE, elsewhere)):
                return own | fresh
        return None

    def go_on_together(self, start: Start, *, rounds: int) -> Procedure[None]:
        """Begin the rounds after `start` with all members, each restored from its checkpoint.

        `rounds` is the run's last round, 0 if not known. Waits until training begins. Raises
        RunStoppedError.
        """
        connection = self._connection
        first = start.round + 1
        self._inbox.arrivals.begin_after(start.round)
        begun = False
        while not begun:
            self._inbox.follow()
            generation = connection.state.roster.generation
            hold_points.reach(hold_points.STARTING, 0)
            connection.tell(Synced(generation))
            begun = first > rounds > 0
            if not begun:
                begun = yield from self._wait_for_the_seed_of(first, generation)
        connection.state.seeds.reached = start.round

    def come_in(self) -> Procedure[Joined]:
        """Take over the state of a live member of a run that has begun, and enter its roster.

        Waits until this member's first round can follow. Returns how the member joined. Raises
        RunStoppedError.
        """
        connection = self._connection
        self._inbox.follow()
        while True:
            donor, data = yield from self._fetch_snapshot()
            try:
                opened = self._open(donor, data)
                more = yield from self._fetch_frozen(donor, opened.lacks(self._store))
                if more is None:
                    continue  # there is another donor
                restore(self._store, opened, more)
            except ProtocolError as error:
                _log.warning("member %d gave no snapshot: %s", donor.member, error)
                connection.tell(Unusable(donor.member, shortened(str(error))))
            else:
                if self._store.is_finite():
                    break
                connection.tell(Diverged(donor.member))
            yield from self._inbox.wait_until(partial(self._donor_is_not, donor))
        connection.tell(Ready())
        yield from self._inbox.wait_until(lambda: connection.state.enrolled)
        entry = next(r for r in connection.state.rosters if connection.member in r.members)
        connection.state.seeds.reached = entry.first - 1
        self._inbox.arrivals.begin_after(entry.first - 1)
        self._inbox.arrivals.go_on(connection.state.averages)
        yield from self._inbox.wait_until(
            lambda: entry.first in connection.state.seeds or self._others_have_ended()
        )
        config = connection.config
        if config.exchange.max_delay == "none" and config.method.name != "none" and config.method.p:
            yield from self._inbox.wait_until(
                lambda: self._is_reached(entry.first),
                deadline=self._clock() + connection.patience.seconds,  # perhaps nobody sends now
            )
        return Joined(entry.generation, entry.first - 1, donor.member, opened.snapshot.step)

    @property
    def serves(self) -> bool:
        """Whether a snapshot of this member is offered."""
        return bool(self._served)

    def serve_guests(self, where: Snapshot) -> None:
        """Just after a step, offer this member's state to the newcomers that asked for it.

        `where` names the run, member, step and round. The snapshots of newcomers that no longer
        wait are withdrawn.
        """
        guests = {guest.member for guest in self._inbox.guests}
        for guest in guests - self._served:
            self._served.add(guest)
            hold_points.reach(hold_points.GIVING, 0)
            try:
                blob = memoryview(take(self._store, where, frozen=False))
            except NATURAL as error:  # at this step; it was tried when joining
                self._connection.tell(NoSnapshots(shortened(f"{error}"[:200])))
                continue
            self._transfer.offer(f"snapshot:{guest}", blob, Kind.STATE)
            values = self._store.values() if self._store.frozen else {}
            for number, name in enumerate(self._store.frozen):
                blob = as_bytes(values[name])
                self._transfer.offer(f"snapshot:{guest}:{number}", blob, Kind.STATE)
        for guest in self._served - guests:
            self._served.remove(guest)
            self._transfer.withdraw(f"snapshot:{guest}")

    def _fetch_snapshot(self) -> Procedure[tuple[Peer, bytes]]:
        """Fetch a snapshot; if its donor is lost, from the next one. Returns donor and bytes."""
        limit = self._store.largest_snapshot
        while True:
            donor = self._connection.state.donor
            assert donor is not None
            self._inbox.link(donor)
            hold_points.reach(hold_points.RECEIVING, 0)
            name = f"snapshot:{self._connection.member}"
            download = self._transfer.fetch(donor.member, name, None, kind=Kind.STATE, limit=limit)
            gone = partial(self._donor_is_not, donor)
            if (yield from self._inbox.wait_for([download], gone)):
                assert download.into is not None
                return donor, bytes(download.into)

    def _open(self, donor: Peer, data: bytes) -> Opened:
        opened = open_snapshot(data)
        whose = opened.snapshot
        if (whose.run, whose.member) != (self._connection.origin, donor.member):
            raise ProtocolError(f"it is member {whose.member}'s, of run {whose.run.hex()}")
        return opened

    def _fetch_frozen(self, donor: Peer, names: list[str]) -> Procedure[State | None]:
        """Fetch the frozen parameters `names` from `donor`; None if the donor changes."""
        if not names:
            return {}
        own, numbers = self._store.values(), {n: k for k, n in enumerate(self._store.frozen)}
        if unknown := [name for name in names if name not in numbers]:
            raise ProtocolError(f"{unknown[0]} is frozen there, and trains here")
        fresh = {name: torch.empty_like(own[name]) for name in names}
        wanted = {str(numbers[name]): vector for name, vector in fresh.items()}
        what = f"snapshot:{self._connection.member}"
        gone = partial(self._donor_is_not, donor)
        whole = yield from self._inbox.fetch(donor.member, what, wanted, Kind.STATE, gone)
        return fresh if whole else None

    def _others_have_ended(self) -> bool:
        """Whether all older members have ended their rounds before this newcomer's first round.

        They then wait for this newcomer in an average. Older members have smaller MemberIds. Of
        several newcomers, each follows once all older ones have ended, too.
        """
        me, arrivals = self._connection.member, self._inbox.arrivals
        older = [m for m in self._connection.state.roster.members if m < me]
        return bool(older) and all(map(arrivals.has_ended, older))

    def _is_reached(self, first: int) -> bool:
        """Whether some older member has reached round `first`, or no older member is left.

        Under `--max-delay none` a newcomer that is ahead of the others would make them skip rounds.
        """
        me, arrivals = self._connection.member, self._inbox.arrivals
        members = self._connection.state.roster.members
        nobody_older = all(member >= me or arrivals.has_ended(member) for member in members)
        return arrivals.newest >= first or nobody_older

    def _donor_is_not(self, donor: Peer) -> bool:
        return self._connection.state.donor is not donor

    def _wait_for_the_seed_of(self, first: int, generation: int) -> Procedure[bool]:
        """Wait until the seed of round `first` is here, or the roster changes.

        Returns whether training has begun.
        """
        connection = self._connection
        changed = self._changed(generation)
        yield from self._inbox.wait_until(lambda: first in connection.state.seeds or changed())
        return (
            first in connection.state.seeds
            and roster_at(connection.state.rosters, first).generation == generation
        )

    def _changed(self, generation: int) -> Callable[[], bool]:
        return lambda: self._connection.state.roster.generation != generation
