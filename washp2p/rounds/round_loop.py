"""The rounds of a member: what happens between its steps t and t + 1.

    seed -> plan -> gather -> send -> wait for rounds <= t - S -> apply what has arrived -> log it

The methods that wait are procedures (`waiting.py`). Nothing here reads a socket, a file or a clock
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError
from washp2p.protocol.messages.frames import FOREVER
from washp2p.protocol.messages.from_worker import Diverged
from washp2p.protocol.roster import by_roster, roster_at
from washp2p.rounds import hold_points
from washp2p.rounds.delay import RECENT, WORTH_WAITING
from washp2p.runfolder.runlog import Jump, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.model.store import Store
    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.rounds.delay import Delay
    from washp2p.rounds.exchange import Exchange
    from washp2p.rounds.inbox import Inbox
    from washp2p.rounds.ports import ControlPlane, Log, Plans
    from washp2p.rounds.repairer import Repairer
    from washp2p.rounds.round_state import Applied, Beside, Staged
    from washp2p.rounds.surveyor import Surveyor
    from washp2p.rounds.waiting import Clock, Procedure
    from washp2p.runfolder.runlog import Joined


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a member's rounds begin: at zero, where it joined, or at its checkpoint."""

    round: int = 0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    generations: list[tuple[int, int, int]] = field(default_factory=list)
    """As `RoundLoop.generations`."""


class RoundLoop:
    """One member's rounds. `rounds` is the run's last round, 0 if not known."""

    def __init__(
        self,
        *,
        connection: ControlPlane,
        inbox: Inbox,
        exchange: Exchange,
        plans: Plans,
        delay: Delay,
        expire: int,
        rounds: int,
        store: Store,
        log: Log | None,
        clock: Clock,
        surveyor: Surveyor | None = None,
        repairer: Repairer | None = None,
    ) -> None:
        self._surveyor = surveyor
        self._repairer = repairer
        self._connection = connection
        self._inbox = inbox
        self._exchange = exchange
        self._arrivals = exchange.arrivals
        self._plans = plans
        self._clock = clock
        self._delay = delay
        self._expire = expire
        self._rounds = rounds
        self._store = store
        self._log = log
        self.round = 0
        """The last round this member took part in."""
        self.steps = 0
        """Optimizer steps taken: equal to `round` unless it joined late or skipped rounds."""
        self.waited = 0.0
        """Seconds spent waiting for peers."""
        self.began = self.ended = clock()
        self.late = 0.0
        """By how many rounds values were late: a running mean over recent rounds."""
        self._waiting_share = 0.0
        """Share of its time that it waited for peers: a running mean over recent rounds."""
        self._start = Start()
        self._reported: set[MemberId] = set()
        self._reported_in: Roster | None = None
        self._averaged = False

    @property
    def max_delay(self) -> str:
        """The bound S on lateness that holds now, or "none"."""
        return "none" if self._delay.bound is None else str(self._delay.bound)

    @property
    def goes_on(self) -> bool:
        """Whether another round follows, as far as is known."""
        return not self._rounds or self.round < self._rounds

    @property
    def generations(self) -> list[tuple[int, int, int]]:
        """For each generation with this member: the number of members, the first round, and the
        round after the last.
        """
        rounds = range(self._start.round + 1, self.round + 1)
        me = self._connection.member
        return self._start.generations + [
            (len(roster.members), its.start, its.stop)
            for roster, its in by_roster(self._connection.state.rosters, rounds)
            if me in roster.members
        ]

    @property
    def seconds(self) -> float:
        """Seconds from the beginning of the first round to the end of the last one."""
        return self._start.seconds + self.ended - self.began

    def account(self) -> dict[str, Any]:
        """The fields of a `Start`, except `round` and `steps`, as plain values."""
        return {"seconds": self.seconds, "waited": self.waited, "generations": self.generations}

    def begin(self, start: Start, joined: Joined | None = None) -> None:
        """Start to derive the first plan, and start the clock. The first step may follow.

        The first round's seed has arrived, unless all other members have ended. `joined` is the
        log's record of how this member joined in mid-run, if it did.
        """
        self._start = start
        self.round, self.steps, self.waited = start.round, start.steps, start.waited
        if joined is not None and self._log is not None:
            self._log.append([joined])
        self._plans.prepare(self.round + 1)
        self.began = self.ended = self._clock()

    def advance(self) -> Procedure[None]:
        """Take part in the round that follows an optimizer step. Waits as long as the bound on
        lateness demands.

        Raises UsageError if there are more steps than announced, or if training goes on after an
        average with which a peer has ended its run. Raises RunStoppedError.
        """
        self._count_step()
        jumps, number = self._next_round()
        if self._rounds and number > self._rounds:
            return  # it jumped, and now its peers have ended
        yield from self._await_seed(number)
        if jumps:  # but not over a round of which a checkpoint is to be kept
            number = min(number, self._connection.state.checkpoint_from(self.round + 1) or number)
            jumps = number > self.round + 1
        staged = self._plans.take(number)
        self._connection.reached(number)  # after `take`: it deletes the round's seed
        self.round = number
        if jumps and self._log is not None:
            self._log.append([Jump(self.steps, self._roster.generation, number)])
        bound = self._delay.bound
        if staged is not None or self._arrivals.outstanding:
            yield from self._trade(number, staged, bound)
        if self._surveyor is not None:
            yield from self._survey(self._surveyor, number, bound)
        self.ended = self._clock()

    def _count_step(self) -> None:
        if self._averaged and (gone := self._arrivals.ended_for_good):
            raise UsageError(
                f"member {min(gone)} has ended its run with an average, and member "
                f"{self._connection.member} trains on after it; expected all to average, and to "
                "end, after the same round"
            )
        self.steps += 1
        if self._rounds and self._start.round + self.steps - self._start.steps > self._rounds:
            raise UsageError(
                f"step {self.steps} of member {self._connection.member}, which joined for "
                f"{self._rounds} rounds; take no more steps than join(rounds=...) said, or leave "
                "it out"
            )

    def _next_round(self) -> tuple[bool, int]:
        """Whether this member jumps to its next round, and the number of that round."""
        number = self.round + 1
        newest = min(self._arrivals.newest, self._connection.state.seeds.until)
        if self._delay.bound is None and newest - number > self._expire:
            return True, newest
        return False, number

    def pause(self, number: int) -> Procedure[None]:
        """Stop before average `number`: tell the peers, wait for missing values, and apply them.

        If interrupted, it may be called again.
        """
        self._exchange.end(self.round, number, self._peers)
        yield from self._inbox.wait_until(
            lambda: self._arrivals.complete(self.round),
            lambda: self._arrivals.waits_for(self.round),
        )
        self._store.refresh()
        self._exchange.apply(self._log_applied)

    def go_on(self) -> None:
        """Continue with rounds: all members took the average after the same round."""
        self._averaged = True
        self._exchange.go_on()
        self.ended = self._clock()

    def finish(self) -> None:
        """Tell the peers that no step follows."""
        self._exchange.end(self.round, FOREVER, self._peers)

    def settle(self) -> Procedure[None]:
        """Wait for missing values, or give them up under `--max-delay none`; apply what came."""
        if self._arrivals.outstanding:
            waited = 0.0
            if self._delay.bound is None:
                self._arrivals.give_up(self.round + 1)
            else:
                waited = yield from self._wait(self.round, 0)
            self._report_and_observe(self._exchange.apply(self._log_applied), waited)

    def _trade(self, number: int, staged: Staged | None, bound: int | None) -> Procedure[None]:
        """Send a round's values, wait as long as the bound demands, apply what has arrived. After
        a mean, do REPAIR if it is wanted.
        """
        means = staged is not None and staged.plan.mean is not None
        repairer = self._repairer if means else None
        own_moments = None if repairer is None else repairer.moments()
        if staged is not None:
            self._exchange.send(number, staged, round(1000 * self._waiting_share))
        else:
            self._store.refresh()
        hold_points.reach(hold_points.AFTER_SEND, number)
        applied: list[Applied] = []
        waited = 0.0
        for _ in range(1 if staged is None else staged.legs):  # `apply` sends a mean's second leg
            waited += yield from self._wait(number, bound)
            hold_points.reach(hold_points.APPLYING, number)
            applied += self._exchange.apply(self._log_applied)
        self._report_and_observe(applied, waited)
        if repairer is not None and own_moments is not None and staged is not None:
            beside = repairer.begin(own_moments, staged.roster, staged.plan)
            yield from self._trade_beside(number, staged.roster, beside, bound)

    def _survey(self, surveyor: Surveyor, number: int, bound: int | None) -> Procedure[None]:
        """Take part in a survey if one is due. After a round with a checkpoint it covers all
        scalars, unless lateness has no bound.
        """
        exact = bound is not None and number == self._connection.state.checkpoint_from(number)
        roster = self._roster
        if len(roster.members) > 1 and (exact or surveyor.due(number)):
            beside = surveyor.begin(number, roster, exact=exact)
            yield from self._trade_beside(number, roster, beside, bound)

    def _trade_beside(
        self, number: int, roster: Roster, beside: Beside, bound: int | None
    ) -> Procedure[None]:
        """Send extra vectors with a round, and use those that have arrived."""
        self._exchange.send_beside(number, roster, beside)
        self.waited += yield from self._wait(number, bound)
        self._exchange.apply(self._log_applied)

    def _await_seed(self, number: int) -> Procedure[None]:
        if number not in self._connection.state.seeds:
            self._connection.progress(number - 1)
            yield from self._inbox.wait_until(lambda: number in self._connection.state.seeds)

    def _wait(self, number: int, bound: int | None) -> Procedure[float]:
        """Wait for rounds up to `number` - `bound`. Returns the seconds that this took.

        Without a bound, does not wait: gives up rounds before `number` - `--expire`.
        """
        if bound is None:
            self._arrivals.give_up(number - self._expire)
            return 0.0
        due = number - bound
        if self._arrivals.complete(due):
            return 0.0
        began = self._clock()
        yield from self._inbox.wait_until(
            lambda: self._arrivals.complete(due), lambda: self._arrivals.waits_for(due)
        )
        return self._clock() - began

    def _report_and_observe(self, applied: Sequence[Applied], waited: float) -> None:
        """Report members that have diverged, and update the statistics with what was applied."""
        if self._exchange.merger.diverged:
            if self._reported_in is not self._roster:  # votes are of one roster
                self._reported_in = self._roster
                self._reported.clear()
            for member in self._exchange.merger.diverged - self._reported:
                self._connection.tell(Diverged(member))
            self._reported |= self._exchange.merger.diverged
            self._exchange.merger.diverged.clear()
        elapsed = self._clock() - self.ended
        self.waited += waited
        if elapsed:
            self._waiting_share += RECENT * (min(1.0, waited / elapsed) - self._waiting_share)
        lateness = max((self.round - one.round for one in applied if one.senders), default=0)
        self.late += RECENT * (lateness - self.late)
        self._delay.observe(
            waited=waited,
            elapsed=elapsed,
            useful=self._arrivals.senders_wait > 1000 * WORTH_WAITING,
            lateness=lateness,
        )

    @property
    def _peers(self) -> tuple[MemberId, ...]:
        return self._connection.state.roster.members

    @property
    def _roster(self) -> Roster:
        """The roster of the member's present round."""
        return roster_at(self._connection.state.rosters, self.round)

    def _log_applied(self, applied: Sequence[Applied]) -> None:
        if self._log is not None and applied:
            generation = self._roster.generation
            self._log.append([Record(self.steps, generation, *one) for one in applied])
