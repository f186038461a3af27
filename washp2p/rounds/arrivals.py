"""Arrivals: matches frames with outstanding legs, holds early frames, and counts lost values.

A leg is outstanding while some of its values are missing or not applied. One `Arrivals` serves one
member, over all generations, and does not look into payloads. A value that never arrives is counted
once, by its receiver. An invalid frame is refused, and the values expected in its place count as
lost.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import inf
from typing import TYPE_CHECKING

from washp2p.protocol.ledger import Loss
from washp2p.protocol.messages.frames import BESIDE, FIRST, FOREVER, SURVEY
from washp2p.protocol.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from washp2p.protocol.messages.frames import End, Frame
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId
    from washp2p.rounds.round_state import Leg, Span, Turn
    from washp2p.transports.base import Payload

HELD_BYTES = 64 << 20
"""Bytes that early frames may take. A frame that would exceed them is dropped, and its values count
as lost. A frame of the very next round is never dropped."""


class Arrivals:
    """Matches arriving frames with legs. `item_bytes` has the size of a value for each slot.

    Early frames may take HELD_BYTES, or `room` bytes if that is more. Frames of the very next round
    are always held; their bytes count, too.
    """

    def __init__(
        self, item_bytes: Sequence[int], refusals: Refusals[MemberId], room: int = 0
    ) -> None:
        self._room = room
        self._refusals = refusals
        self._item_bytes = item_bytes
        self._turn: Turn = (0, FIRST)
        """The last turn of which this member expected values."""
        self._outstanding: dict[Turn, Leg] = {}
        self._early: dict[Turn, dict[MemberId, tuple[Frame, Payload]]] = {}
        """Frames of turns that have not begun here."""
        self._early_bytes = 0
        self._dropped: set[tuple[Turn, MemberId]] = set()
        """Early frames for which there was no room."""
        self._given_up: dict[MemberId, Turn] = {}
        """By sender, a turn: values of earlier turns were given up; `refused` counts late ones."""
        self._skipped: list[range] = []
        """Rounds in which this member took no part."""
        self._heard: dict[MemberId, Turn] = {}
        """By sender, a turn: no frame of an earlier turn will come, as messages arrive in order."""
        self.last_rounds: dict[MemberId, int] = {}
        """By peer that has ended: the last round that it takes part in."""
        self._before: dict[MemberId, int] = {}
        self._averages = 0
        self.ended_for_good: set[MemberId] = set()
        """Peers that have said that they take no step any more."""
        self._silent: set[MemberId] = set()
        self._gone: set[MemberId] = set()
        self.newest = 0
        """The newest round of which values have arrived."""
        self.senders_wait = 0
        """The share of its time, per mille, that the last frame's sender waits, as it says."""
        self.lost: Counter[Loss] = Counter()
        """Scalars this member should have received and never will apply, by reason."""
        self.refused = 0
        """Frames that came from members that are gone, or after their values were given up."""

    @property
    def expired_values(self) -> int:
        """The number of all lost values."""
        return self.lost.total()

    @property
    def lost_by_reason(self) -> dict[str, int]:
        """The number of lost values by reason, as plain values."""
        return {str(why): count for why, count in self.lost.items()}

    def __iter__(self) -> Iterator[Leg]:
        """The outstanding legs, oldest first."""
        return iter(list(self._outstanding.values()))

    def absent(self, peer: MemberId, number: int) -> bool:
        """Whether `peer` has said that it does not take part in round `number`."""
        return self.last_rounds.get(peer, number) < number

    def has_ended(self, peer: MemberId) -> bool:
        """Whether `peer` has said that it takes part in no further round."""
        return peer in self.last_rounds

    def begin_after(self, number: int) -> None:
        """Begin with the round after `number`. Frames held of rounds up to `number` are dropped."""
        self._turn = (number, sys.maxsize)
        self._pop_early(lambda turn: turn < self._turn)

    def waits_for(self, upto: int = sys.maxsize) -> set[MemberId]:
        """The members whose values are still missing in rounds up to `upto` (default: in all)."""
        return {s for r in self._outstanding.values() if r.number <= upto for s in r.missing}

    def silence(self, peer: MemberId) -> None:
        """Give up values of `peer`, whose connection is broken, until a frame from it arrives."""
        self._silent.add(peer)
        self._give_up_on(peer, self._why_silent(peer))

    def remove(self, peer: MemberId) -> None:
        """Refuse all frames of `peer` from now on: it is no member any more."""
        self._gone.add(peer)
        self.silence(peer)

    def is_gone(self, peer: MemberId) -> bool:
        """Whether `peer` was a member and is gone. Messages it sent before may still arrive."""
        return peer in self._gone

    def posted(self, sender: MemberId, last: Turn) -> None:
        """Count as lost all values of `sender`'s turns up to `last` that have not arrived."""
        if sender not in self._gone:
            number, leg = last
            self._heard_up_to(sender, (number, leg + 1), Loss.LINK)

    def expect(self, leg: Leg) -> None:
        """Expect a leg's values from now on. Rounds left out before the leg's round are skipped."""
        turn, number, (last, _) = leg.turn, leg.number, self._turn
        if number > last + 1:
            self._skip(range(last + 1, number))
        self._turn = turn
        self._outstanding[turn] = leg
        if self._early or self._dropped:
            self._refuse_older(turn)
        for frame, payload in self._early.pop(turn, {}).values():  # what was held for it
            self._early_bytes -= payload.nbytes
            self._match(leg, frame, payload)
        if self._dropped:
            for sender in [s for s in leg.missing if (turn, s) in self._dropped]:
                self._dropped.remove((turn, sender))
                self._lose(leg, sender, None)
        for sender in [s for s in leg.missing if turn < self._heard.get(s, turn)]:
            self._lose(leg, sender, Loss.SKIPPED)  # and is heard no more
        if self._silent:
            for sender in self._silent.intersection(leg.missing):
                self._lose(leg, sender, self._why_silent(sender))

    def accept(self, frame: Frame, payload: Payload) -> None:
        """Take an arriving frame, unless it is invalid.

        `payload` has every slot's values, slot after slot. It is kept until they are applied.
        """
        number, sender, turn = frame.round, frame.sender, frame.turn
        if self._silent:
            if sender in self._gone:
                self.refused += 1
                return
            self._silent.discard(sender)
        if frame.leg > SURVEY:
            self._refuse(frame, Reason.MALFORMED, f"leg {frame.leg}; expected at most {SURVEY}")
            return
        if frame.leg < BESIDE:
            self.newest = max(self.newest, number)
        self.senders_wait = frame.waits
        self._heard_up_to(sender, turn, Loss.SKIPPED)
        leg = self._outstanding.get(turn)
        if leg is not None:
            self._match(leg, frame, payload)
        elif turn > self._turn:
            self._hold(frame, payload)
        elif turn < self._given_up.get(sender, turn):
            self.refused += 1
        elif any(number in skipped for skipped in self._skipped):
            self._count(Loss.JUMPED, frame, payload)
        else:
            self._refuse(frame, Reason.AGAIN, "once was expected")

    def ended(self, end: End) -> None:
        """Note that a peer takes part in no round after `end.last` until average `end.number`."""
        if end.number <= self._averages:
            return  # which has been, meanwhile
        if end.number == FOREVER:
            self.ended_for_good.add(end.sender)
        self.last_rounds[end.sender], self._before[end.sender] = end.last, end.number
        self._heard_up_to(end.sender, (end.last + 1, FIRST), Loss.SKIPPED)
        for leg in self._outstanding.values():
            leg.missing.pop(end.sender, None)

    def go_on(self, number: int) -> None:
        """Let peers that had ended before average `number` take part again: all have taken it."""
        self._averages = number
        self.last_rounds = {
            p: last for p, last in self.last_rounds.items() if self._before[p] > number
        }

    def complete(self, upto: int) -> bool:
        """Whether nothing more will arrive of rounds up to `upto`."""
        for leg in self._outstanding.values():
            if leg.number > upto:
                return True
            if leg.missing:
                return False
        return True

    def give_up(self, before: int) -> None:
        """Stop waiting for missing values of rounds before `before`: they count as lost."""
        for leg in self._outstanding.values():
            if leg.number >= before:
                return
            for sender in tuple(leg.missing):
                self._lose(leg, sender, Loss.LATE)

    def settle(self, leg: Leg) -> None:
        """Clear a leg's arrived values and lost senders. Forget the leg if nothing is missing."""
        leg.arrived.clear()
        leg.lost.clear()
        if not leg.missing:
            del self._outstanding[leg.turn]

    @property
    def outstanding(self) -> bool:
        """Whether there is a leg of which something is missing or not applied."""
        return bool(self._outstanding)

    @property
    def oldest(self) -> int:
        """The number of the oldest outstanding round, or of the next round if there is none."""
        return next(iter(self._outstanding), (self._turn[0] + 1, FIRST))[0]

    def _match(self, leg: Leg, frame: Frame, payload: Payload) -> None:
        sender = frame.sender
        span = leg.missing.get(sender)
        if span is None:
            if leg.turn < self._given_up.get(sender, leg.turn):
                self.refused += 1
                return
            if sender in leg.arrived:
                self._refuse(frame, Reason.AGAIN, "once was expected")
            else:
                self._refuse(frame, Reason.PLAN, "no values were expected: run the same version")
            return
        if problem := self._unlike(leg, frame, payload, span):
            self._refuse(frame, *problem)
            # what has come in its stead is not it, nor will that come
            self._lose(leg, sender, Loss.REFUSED)
            return
        del leg.missing[sender]
        leg.arrived[sender] = (span, payload)

    def _unlike(
        self, leg: Leg, frame: Frame, payload: Payload, span: Span
    ) -> tuple[Reason, str] | None:
        """The reason and details if a frame differs from its round's plan; None if it does not."""
        if frame.generation != leg.generation:
            return (
                Reason.ROUND,
                f"in generation {frame.generation}, here it is in {leg.generation}",
            )
        if frame.fingerprint != leg.fingerprint:
            return Reason.OTHER_PLAN, (
                f"fingerprint {frame.fingerprint:016x}, here {leg.fingerprint:016x}; expected "
                "the same everywhere: run the same version on the same kind of platform"
            )
        size = (span[1] - span[0]) * sum(self._item_bytes[: leg.slots])
        if payload.nbytes != size or frame.slots != leg.slots:
            return Reason.LENGTH, (
                f"{payload.nbytes} bytes of {frame.slots} slots, the plan says {size} of "
                f"{leg.slots}: run the same version everywhere"
            )
        return None

    def _refuse(self, frame: Frame, reason: Reason, detail: str) -> None:
        what = f"frame of round {frame.round} from member {frame.sender}: {detail}"
        self._refusals.refuse(frame.sender, reason, what)

    def _why_silent(self, peer: MemberId) -> Loss:
        return Loss.GONE if peer in self._gone else Loss.LINK

    def _give_up_on(self, peer: MemberId, why: Loss, before: tuple[float, int] = (inf, 0)) -> None:
        for turn, leg in self._outstanding.items():
            if turn >= before:
                break
            if peer in leg.missing:
                self._lose(leg, peer, why)

    def _hold(self, frame: Frame, payload: Payload) -> None:
        turn = frame.turn
        held = self._early.setdefault(turn, {})
        if frame.sender in held or (turn, frame.sender) in self._dropped:
            self._refuse(frame, Reason.AGAIN, "once was expected")
            return
        size = payload.nbytes
        room = max(HELD_BYTES, self._room)
        if frame.round > self._turn[0] + 1 and self._early_bytes + size > room:
            self._dropped.add((turn, frame.sender))
            self._count(Loss.EARLY, frame, payload)
            return
        held[frame.sender] = (frame, payload)
        self._early_bytes += size

    def _pop_early(self, which: Callable[[Turn], bool]) -> list[tuple[Frame, Payload]]:
        """Remove and return the early frames of the turns for which `which(turn)` is True."""
        popped = [
            one
            for turn in tuple(self._early)
            if which(turn)
            for one in self._early.pop(turn).values()
        ]
        self._early_bytes -= sum(payload.nbytes for _, payload in popped)
        return popped

    def _refuse_older(self, before: Turn) -> None:
        """Refuse early frames of turns before `before`, if any: no values were expected in them."""
        for frame, _ in self._pop_early(lambda turn: turn < before):
            if frame.leg < BESIDE:
                self._refuse(frame, Reason.PLAN, "no values were expected")
        if self._dropped:
            self._dropped = {pair for pair in self._dropped if pair[0] >= before}

    def _skip(self, rounds: range) -> None:
        """Skip `rounds`. Values sent to this member in these rounds are lost."""
        self._skipped = [r for r in self._skipped if r.stop > rounds.start - 10_000] + [rounds]
        for frame, payload in self._pop_early(lambda turn: turn[0] in rounds):
            self._count(Loss.JUMPED, frame, payload)
        self._dropped = {pair for pair in self._dropped if pair[0][0] not in rounds}

    def _count(self, why: Loss, frame: Frame, payload: Payload) -> None:
        """Count a frame's values as lost, for the reason `why`. Extra vectors do not count."""
        if frame.leg < BESIDE:
            self.lost[why] += payload.nbytes // sum(self._item_bytes)

    def _heard_up_to(self, sender: MemberId, turn: Turn, why: Loss) -> None:
        """Count `sender`'s missing values before `turn` as lost: messages arrive in order."""
        self._heard[sender] = turn
        self._give_up_on(sender, why, before=turn)

    def _lose(self, leg: Leg, sender: MemberId, why: Loss | None) -> None:
        """Give up a sender's values of a leg. Count them by the reason `why`, if it is not None."""
        begin, end = leg.missing.pop(sender)
        after = leg.number, leg.leg + 1  # of a broken link, old ones may come after new ones
        self._given_up[sender] = max(self._given_up.get(sender, after), after)
        if why is not None and leg.leg < BESIDE:
            self.lost[why] += end - begin
        leg.lost.append(sender)
