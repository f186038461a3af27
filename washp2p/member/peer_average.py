"""One average over all members that are alive, and each member's values at that moment.

Members first exchange digests of their tensors. Only tensors that differ are sent. If a member is
lost before all have the average, the others start again without it. The average stands once the
coordinator says that all members have it. Nothing here trains or writes files.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from washp2p.errors import RunStoppedError, UsageError
from washp2p.model.device_copies import as_bytes
from washp2p.model.digests import differing, digests_of, not_finite_alone
from washp2p.model.means import mean
from washp2p.plan.plan import shard_bounds
from washp2p.protocol.layout import RECOMPUTED
from washp2p.protocol.ledger import Kind
from washp2p.protocol.messages.from_worker import Averaged
from washp2p.rounds import hold_points

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from washp2p.model.store import State
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane
    from washp2p.rounds.waiting import Procedure
    from washp2p.transports.transfer import Download, Transfer


class _RosterChangedError(Exception):
    """A member was lost; the average has to be started again."""


class PeerAverage:
    """The part of this member in average `number`.

    `state` has the values to average. The caller must not change them before the average is taken,
    and must not change the `frozen` tensors among them afterwards either. `by_hand` is True if the
    caller gave the values, False if they are the model's own.
    """

    def __init__(
        self,
        state: State,
        number: int,
        *,
        by_hand: bool,
        layout: Layout,
        frozen: Collection[str] = (),
        connection: ControlPlane,
        inbox: Inbox,
        transfer: Transfer,
    ) -> None:
        self.number = number
        self.state = state
        """This member's values. Tensors equal on all members may share the model's memory."""
        self.averaged: State = {}
        """The average, once `average` has returned."""
        self.over: Roster | None = None
        """The members whose average it is, once `average` has returned."""
        self.rounds: tuple[int, ...] = ()
        """For each of these members, the round after which it took the average."""
        self.differing: tuple[str, ...] = ()
        """Names of the tensors that were not equal on all members."""
        self._layout = layout
        self._rules = {buffer.name: buffer.rule for buffer in layout.buffers}
        self._digests = bytes([by_hand]) + digests_of(state)
        self._changing = frozenset(state).difference(frozen)
        self._groups: list[list[str]] = []
        self._means = 0
        self._connection = connection
        self._inbox = inbox
        self._transfer = transfer

    def average(self) -> Procedure[None]:
        """Take the average, together with all members. If interrupted, it may be called again.

        Waits until all members have the average. Raises RunStoppedError, also if a tensor is not
        finite here and is finite on another member. Raises UsageError if some members average their
        models and others something else.
        """
        while self.over is None:
            self._transfer.cancel()
            roster = self._connection.state.roster
            hold_points.reach(hold_points.AVERAGING, 0)
            try:
                self.averaged = yield from self._average_over(roster)
                self.over = roster
            except _RosterChangedError:
                continue

    def leads(self) -> Procedure[bool]:
        """Whether this member has to evaluate the average.

        Waits until another member has evaluated it, the run is over, or it falls to this member.
        """
        connection = self._connection

        def known() -> bool:
            first = connection.state.roster.members[0]
            evaluated = connection.state.evaluated >= self.number
            return evaluated or connection.state.over or first == connection.member

        yield from self._inbox.wait_until(known)
        falls_to_me = not (connection.state.evaluated >= self.number or connection.state.over)
        if falls_to_me:
            hold_points.reach(hold_points.EVALUATING, 0)
        return falls_to_me

    def of(self, member: MemberId) -> Procedure[State | None]:
        """The values that `member` brought to the average; None if it is gone."""
        if member == self._connection.member:
            return self.state

        def gone() -> bool:
            there = member in self._connection.state.roster.members
            return not there or member in self._inbox.out_of_reach

        vectors = [torch.empty_like(self._joined(names)) for names in self._groups]
        into = {str(number): vector for number, vector in enumerate(vectors)}
        blobs = f"final{self._label}"
        whole = yield from self._inbox.fetch(member, blobs, into, Kind.AVERAGE, gone)
        return self._filled(vectors) if whole else None

    def withdraw(self) -> None:
        """Stop offering this average's values to other members."""
        for blob in ("digests", "final", "mean"):
            self._transfer.withdraw(f"{blob}{self.number}.")

    def _average_over(self, roster: Roster) -> Procedure[State]:
        connection = self._connection
        self._label = f"{self.number}.{roster.generation}"

        def changed() -> bool:
            return connection.state.roster is not roster and not settled()

        def settled() -> bool:
            its = connection.state.settled
            return its is not None and (its.number, its.generation) == (
                self.number,
                roster.generation,
            )

        def wait_until(condition: Callable[[], bool]) -> Procedure[None]:
            peers = self._transfer.peers
            yield from self._inbox.wait_until(lambda: condition() or changed(), peers)
            if changed():
                raise _RosterChangedError

        names = list(self.state)
        told = yield from self._exchange_digests(roster, wait_until)
        if len({row[0] for row in told.values()}) > 1:
            own = [str(member) for member, row in told.items() if row[0]]
            raise UsageError(
                f"average {self.number} is of what was handed over on member {', '.join(own)}, and "
                "of the model on the others; expected the same on all: average(ema.module."
                "state_dict()) or average()"
            )
        rows = {member: row[1:] for member, row in told.items()}
        if sick := not_finite_alone(names, rows):
            if (name := sick.get(connection.member)) is not None:
                raise RunStoppedError(
                    f"member {connection.member} has diverged, {name} is not finite, though on "
                    "other members it is; a lower --lr may help"
                )
            yield from wait_until(lambda: False)  # it goes, and says why
        self.differing = tuple(differing(names, rows.values()))
        vectors = self._group(self.differing)
        self.state = self._filled(vectors)  # which are copies
        for name in self._changing.difference(self.differing):
            self.state[name] = self.state[name].clone()
        self._changing = frozenset()
        for number, vector in enumerate(vectors):
            blob = f"final{self._label}:{number}"
            self._transfer.offer(blob, as_bytes(vector), Kind.AVERAGE)
        means = yield from average_peer_to_peer(
            vectors[: self._means],
            transfer=self._transfer,
            members=roster.members,
            me=connection.member,
            attempt=self._label,
            wait_until=wait_until,
        )
        firsts = [v.clone() for v in vectors[self._means :]]
        first = roster.members[0]
        if first != connection.member:
            downloads = [
                self._transfer.fetch(
                    first, f"final{self._label}:{number}", as_bytes(vector), kind=Kind.AVERAGE
                )
                for number, vector in enumerate(firsts, self._means)
            ]
            yield from wait_until(all_done(downloads))
        connection.tell(Averaged(roster.generation, self.number))
        yield from wait_until(settled)
        assert connection.state.settled is not None
        self.rounds = tuple(connection.state.settled.rounds)
        return self._filled([*means, *firsts])

    def _exchange_digests(
        self, roster: Roster, wait_until: Callable[[Callable[[], bool]], Procedure[None]]
    ) -> Procedure[dict[MemberId, bytes]]:
        """Fetch the digests of all members, by member; their first byte is `by_hand`."""
        blob = f"digests{self._label}"
        me = self._connection.member
        self._transfer.offer(blob, memoryview(self._digests), Kind.AVERAGE)
        rows = {m: bytearray(self._digests) for m in roster.members}
        downloads = [
            self._transfer.fetch(member, blob, memoryview(row), kind=Kind.AVERAGE)
            for member, row in rows.items()
            if member != me
        ]
        yield from wait_until(all_done(downloads))
        return {member: bytes(row) for member, row in rows.items()}

    def _group(self, names: tuple[str, ...]) -> list[torch.Tensor]:
        """Group the tensors `names` by rule and dtype; return one joined vector for each group.

        Groups that take a mean or a maximum come first; `_means` is their number.
        """
        groups: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
        for name in names:
            rule = self._rules.get(name, "mean")
            groups[rule not in {"mean", "max"}, str(self.state[name].dtype)].append(name)
        self._groups = [groups[key] for key in sorted(groups)]
        self._means = sum(not first for first, _ in groups)
        return [self._joined(group) for group in self._groups]

    def _joined(self, names: list[str]) -> torch.Tensor:
        """The values of these tensors, concatenated in one new vector."""
        parts = [self.state[name] for name in names]
        return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)

    def _filled(self, vectors: list[torch.Tensor]) -> State:
        """A copy of the state in which the grouped tensors are views of `vectors`."""
        state = dict(self.state)
        for names, vector in zip(self._groups, vectors, strict=True):
            sizes = [len(self.state[name]) for name in names]
            state |= dict(zip(names, vector.split(sizes), strict=True))
        return state

    @property
    def identical(self) -> bool:
        """Whether there are several members and all had exactly the same parameters."""
        names = {entry.name for entry in self._layout.entries}
        alone = self.over is None or len(self.over.members) < 2
        return not alone and names.isdisjoint(self.differing)

    def doubtful(self, unknown: list[str]) -> list[str]:
        """The names of tensors that differed and that the average may be wrong about.

        `unknown` names buffers of a kind without a known rule.
        """
        rules = self._rules
        return [
            name
            for name in self.differing
            if name in unknown or rules.get(name) in {"first", "equal"}
        ]

    @property
    def recomputes(self) -> bool:
        """Whether some buffer has to be recomputed from the averaged parameters."""
        return any(self._rules.get(name) == RECOMPUTED for name in self.state)


def average_peer_to_peer(
    vectors: Sequence[torch.Tensor],
    *,
    transfer: Transfer,
    members: Sequence[MemberId],
    me: MemberId,
    attempt: str,
    wait_until: Callable[[Callable[[], bool]], Procedure[None]],
) -> Procedure[list[torch.Tensor]]:
    """The mean of all members' `vectors`. Every member in `members` must call this.

    `vectors` are one-dimensional contiguous CPU tensors. All members have the same number of them,
    with the same lengths, and must already offer them as the blobs `final<attempt>:<number>`.
    Values are added in the order of `members`. If `members` change, use another `attempt`, so that
    a late message of the former attempt is not taken for one of this attempt. `wait_until` does
    the waiting, and exceptions that it raises pass through. The caller owns the result.
    """
    results = []
    for number, vector in enumerate(vectors):
        result = torch.empty_like(vector)
        bounds = shard_bounds(len(vector), len(members))
        own = members.index(me)
        begin, end = bounds[own], bounds[own + 1]
        item = vector.element_size()
        parts = [
            vector[begin:end] if m == me else torch.empty_like(vector[begin:end]) for m in members
        ]
        downloads = [
            transfer.fetch(
                m,
                f"final{attempt}:{number}",
                as_bytes(part),
                kind=Kind.AVERAGE,
                offset=begin * item,
            )
            for m, part in zip(members, parts, strict=True)
            if m != me and end > begin
        ]
        yield from wait_until(all_done(downloads))
        result[begin:end] = mean(parts)
        blob = f"mean{attempt}:{number}"
        transfer.offer(blob, as_bytes(result[begin:end]), Kind.AVERAGE)
        downloads = [
            transfer.fetch(m, blob, as_bytes(result[a:b]), kind=Kind.AVERAGE)
            for m, a, b in zip(members, bounds, bounds[1:], strict=False)
            if m != me and b > a
        ]
        yield from wait_until(all_done(downloads))
        results.append(result)
    return results


def all_done(downloads: Sequence[Download]) -> Callable[[], bool]:
    """A condition for `wait_until`: whether all `downloads` have arrived."""
    return lambda: all(download.done for download in downloads)
