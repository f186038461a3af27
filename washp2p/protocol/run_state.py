"""What a member has learnt of its run from the coordinator's messages."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from washp2p.protocol.messages.from_coordinator import (
    Checkpoint,
    Discard,
    Donor,
    Evaluated,
    Finish,
    Guest,
    Kept,
    NewRoster,
    Seeds,
    Settled,
)
from washp2p.protocol.roster import Peer, Roster
from washp2p.protocol.seed_window import SeedWindow

if TYPE_CHECKING:
    from washp2p.protocol.messages.control import Message
    from washp2p.protocol.roster import MemberId


class RunState:
    """A run as `member` knows it.

    The control thread writes it, other threads read it. A lock guards what several threads change.
    Rosters and keys need no lock: the list of rosters only grows, and the dicts of keys are
    replaced whole.
    """

    def __init__(self) -> None:
        self.member: MemberId = -1
        """This member's id, once it has one."""
        self.rosters: list[Roster] = []
        """All known rosters, in order. The list only grows."""
        self.seeds = SeedWindow()
        """The seeds that have arrived."""
        self.changes = 0
        """Grows whenever a roster, a guest or a donor is new."""
        self.donor: Peer | None = None
        """Of a newcomer: the member whose snapshot it is to fetch."""
        self.averages = 0
        """How many averages had been taken when this member came into the roster."""
        self.settled: Settled | None = None
        """The last average that stands, once one does."""
        self.evaluated = 0
        """The number of the last average that some member has evaluated and reported."""
        self.over = False
        """Whether all members are finished."""
        self._lock = threading.Lock()
        self._guests: deque[Peer] = deque()
        self._checkpoints: set[int] = set()
        self._keys: dict[bytes, MemberId] = {}
        self._visitors: dict[bytes, MemberId] = {}

    @property
    def roster(self) -> Roster:
        """The newest roster."""
        return self.rosters[-1]

    @property
    def enrolled(self) -> bool:
        """Whether this member is in the newest roster."""
        return bool(self.rosters) and self.member in self.rosters[-1].members

    def member_of(self, key: bytes) -> MemberId | None:
        """The member with this public `key` (32 bytes), or None if there is none.

        It is a member of the newest roster, a guest or a donor.
        """
        return self._keys.get(key)

    def take_guests(self) -> list[Peer]:
        """The newcomers that will ask for a snapshot. Only one call returns each newcomer."""
        with self._lock:
            return [self._guests.popleft() for _ in range(len(self._guests))]

    def checkpoint_from(self, round_number: int) -> int | None:
        """The first round from `round_number` on after which a checkpoint is due, or None.

        All members of that round know the same, even if one could not save its checkpoint.
        """
        with self._lock:
            return min((due for due in self._checkpoints if due >= round_number), default=None)

    def saved(self, round_number: int) -> None:
        """Note that no checkpoint up to `round_number` is due any more."""
        with self._lock:
            self._checkpoints = {due for due in self._checkpoints if due > round_number}

    def take(self, message: Message) -> range:
        """Learn what `message` says. Returns the rounds whose checkpoints are to be deleted.

        Raises ProtocolError for seeds of a roster that is not known.
        """
        with self._lock:
            return self._take(message)

    def _take(self, message: Message) -> range:  # noqa: PLR0912 - a case a message
        match message:
            case Checkpoint(number):
                if number > self.seeds.reached:
                    self._checkpoints.add(number)
            case Kept(number):
                return range(number)
            case Discard(number):
                return range(number, number + 1)
            case NewRoster(generation, first, averages, peers):
                if not self.rosters or generation > self.rosters[-1].generation:
                    if not self.enrolled:
                        self.averages = averages
                    self._take_roster(Roster.from_rows(generation, first, peers))
            case Seeds():
                self.seeds.take(message, self.rosters)
            case Guest(row):
                self._guests.append(self._admit(Peer.from_row(row)))
                self.changes += 1
            case Donor(row):
                self.donor = self._admit(Peer.from_row(row))
                self.changes += 1
            case Settled():
                if self.settled is None or message.number >= self.settled.number:
                    self.settled = message
            case Evaluated(number):
                self.evaluated = max(self.evaluated, number)
            case Finish():
                self.over = True
        return range(0)

    def _take_roster(self, roster: Roster) -> None:
        its = {peer.key: peer.member for peer in roster.peers}
        self._visitors = {k: m for k, m in self._visitors.items() if k not in its}
        self._keys = its | self._visitors
        self.rosters.append(roster)
        self.changes += 1

    def _admit(self, visitor: Peer) -> Peer:
        """Accept the key of `visitor`, a guest or a donor, and return `visitor`.

        The visitor is not in the newest roster known here.
        """
        self._visitors = {**self._visitors, visitor.key: visitor.member}
        self._keys = {**self._keys, visitor.key: visitor.member}
        return visitor
