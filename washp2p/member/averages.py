"""All averages that one member takes part in: the last one, and any that its loop takes earlier.

The k-th average of each member is one average of all members. Training may go on after an average
if all members took it after the same round. The last average is the result of the run. A warning
names the tensors that may be wrong in an average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.member.peer_average import PeerAverage
from washp2p.model.digests import digests_of
from washp2p.protocol.messages.from_worker import Averaging

if TYPE_CHECKING:
    from collections.abc import Callable

    from washp2p.model.store import State, Store
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane
    from washp2p.rounds.waiting import Procedure
    from washp2p.transports.transfer import Transfer


class Averages:
    """The averages of one member. `tell(topic, text)` warns people."""

    def __init__(
        self,
        *,
        store: Store,
        connection: ControlPlane,
        inbox: Inbox,
        transfer: Transfer,
        tell: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._connection = connection
        self._inbox = inbox
        self._transfer = transfer
        self._tell = tell
        self._served: PeerAverage | None = None
        self._trained = True
        self._after = 0
        self.taken = 0
        """How many averages have been taken."""
        self.current: PeerAverage | None = None
        """The last average that was begun. It may have been interrupted."""

    @property
    def stands(self) -> bool:
        """Whether the last average is complete and still holds: no step has followed it."""
        return self.current is not None and self.current.over is not None and not self._trained

    @property
    def begun(self) -> bool:
        """Whether an average of this member's present values has begun."""
        return self.current is not None and not self._trained

    def step(self) -> bool:
        """Note that the loop took a step. Returns whether it is the first one after an average.

        Raises UsageError if members took that average after different rounds.
        """
        if self._trained:
            return False
        assert self.current is not None
        over, rounds = self.current.over, self.current.rounds
        if over is None:
            raise UsageError(
                f"a step follows average {self.current.number}, which was interrupted; call "
                "average() again first"
            )
        if len(set(rounds)) > 1:
            which = ", ".join(
                f"member {member} after round {number}"
                for member, number in zip(over.members, rounds, strict=True)
            )
            raise UsageError(
                f"training goes on after average {self.current.number}, which members took after "
                f"unequal rounds: {which}; expected all to call average() after the same round, or "
                "only at the end"
            )
        self._trained = True
        return True

    def is_of(self, state: State) -> bool:
        """Whether the last average still holds, and this member brought exactly `state` to it."""
        if not self.stands:
            return False
        assert self.current is not None
        return digests_of(state) == digests_of(self.current.state)

    def begin(self, state: State, round_number: int, *, by_hand: bool) -> None:
        """Begin the next average, of `state`, after round `round_number`. `by_hand` is True if
        the caller gave `state`, False if it is the model's.
        """
        number = self.taken + 1
        self._connection.progress(round_number)
        self._connection.tell(Averaging(number, round_number))
        self._served, self._trained = self.current, False
        self._after, self._stepped = round_number, round_number > self._after
        self.current = PeerAverage(
            state,
            number,
            by_hand=by_hand,
            layout=self._store.layout,
            frozen=self._store.frozen,
            connection=self._connection,
            inbox=self._inbox,
            transfer=self._transfer,
        )

    def take(self) -> Procedure[PeerAverage]:
        """Finish the current average with all members; return it. Raises RunStoppedError."""
        assert self.current is not None
        if self.current.over is None:
            yield from self.current.average()
            self.taken = self.current.number
            if self._served is not None:
                self._served.withdraw()
                self._served = None
            self._mend(self.current)
        return self.current

    def _mend(self, average: PeerAverage) -> None:
        """Recompute buffers that follow from averaged parameters; warn about doubtful tensors."""
        wrong = average.doubtful(self._store.unknown_buffers)
        if average.recomputes:
            wrong += self._store.recompute_buffers(average.averaged)
        assert average.over is not None
        if wrong and average.over.members[0] == self._connection.member:
            some = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            self._tell(
                "buffers",
                f"{len(wrong)} buffers differed among members, and the averaged model's may not be "
                f"right: {some}; a mean was taken of what may be no statistic, or the first "
                "member's was taken: recompute them, or join(buffers={name: rule})",
            )
        if self._stepped and average.identical:
            self._tell(
                "one model",
                "all members have ended with the very same parameters: they are one model, "
                f"{len(average.over.members)} times; seed each differently, by member.id or "
                "connect(address, seed=True)",
            )
