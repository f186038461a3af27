"""The script of each member: which values it applies after which of its own steps.

The scripts follow a rule or, in a replay, the logs of a run. No tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.runfolder import rundir
from washp2p.runfolder.roster_store import read_rosters
from washp2p.runfolder.runlog import Joined, Jump, read_log

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from washp2p.protocol.roster import MemberId, Roster
    from washp2p.runfolder.runlog import Record

Application = tuple[int, tuple[int, ...] | None, int]
"""A round, the members whose values of this round are applied (None for all), and the leg."""


@dataclass
class Script:
    """What one member does after each of its own steps, counted from 1.

    `applies` maps a step to the values applied after it, in order. `jumps` has the round of each
    step before which the member skipped rounds. `joined` is the record of a member that joined
    late: it names the donor. A member that did not reach the end of the run stops after
    `last_step`.
    """

    applies: dict[int, list[Application]] = field(default_factory=dict)
    jumps: dict[int, int] = field(default_factory=dict)
    joined: Joined | None = None
    last_step: int | None = None

    def step_of(self, number: int) -> int:
        """The member's own step that belongs to round `number`."""
        step, at = 0, self.joined.round if self.joined else 0
        for jump, to in sorted(self.jumps.items()):
            if to > number:
                break
            step, at = jump, to
        return step + number - at


def exactly_late(rounds: int, delay: int, legs: Sequence[int] = (0,)) -> Script:
    """The script of a member that applies every round exactly `delay` steps late.

    The last of the `rounds` rounds are applied after the last step. Each round has `legs`.
    """
    script = Script()
    for number in range(1, rounds + 1):
        applies = script.applies.setdefault(min(number + delay, rounds), [])
        applies += [(number, None, leg) for leg in legs]
    return script


def from_log(
    path: Path, rosters: Sequence[Roster], member: MemberId | None = None, *, whole: bool = False
) -> Script:
    """The script of a run's member, from its log. Arguments and errors: `runlog.read_log`."""
    return from_records(read_log(path, rosters, member, whole=whole))


def from_records(records: Iterable[Record | Jump | Joined]) -> Script:
    """The script of a run's member, from the records of its log."""
    script = Script()
    for record in records:
        if isinstance(record, Jump):
            script.jumps[record.step] = record.round
        elif isinstance(record, Joined):
            script.joined = record
        else:
            applies = script.applies.setdefault(record.step, [])
            applies.append((record.round, record.applied, record.leg))
    return script


def from_logs(run: Path) -> tuple[list[Roster], dict[MemberId, Script], list[MemberId]]:
    """The rosters, the members' scripts, and the members of the last average, of a distributed run.

    Raises UsageError if the folder lacks any of them.
    """
    rosters = read_rosters(run / rundir.JOURNAL)
    final = rundir.read_summary(run)["averaged_over"]
    members = sorted({member for roster in rosters for member in roster.members})
    scripts = {m: _script(run, m, rosters, whole=m in final) for m in members}
    end_where_needed(scripts, final)
    return rosters, scripts, final


def end_where_needed(scripts: dict[MemberId, Script], final: Sequence[MemberId]) -> None:
    """End the scripts of members that are not in `final` as early as other scripts allow.

    Each ends after the last step whose values, or whose state as a donor's, another member used.
    """
    needed = dict.fromkeys(scripts, 0)
    for script in scripts.values():
        if script.joined is not None:
            donor = script.joined.donor
            needed[donor] = max(needed[donor], script.joined.step)
        for number, senders, _ in (a for applies in script.applies.values() for a in applies):
            for sender in senders or ():
                needed[sender] = max(needed[sender], scripts[sender].step_of(number))
    for member, script in scripts.items():
        if member not in final:
            script.last_step = needed[member]


def _script(run: Path, member: int, rosters: Sequence[Roster], *, whole: bool) -> Script:
    path = rundir.log_file(run, member)
    try:
        return from_log(path, rosters, member, whole=whole)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; --replay needs the logs of all members in one "
            "run folder"
        ) from None
