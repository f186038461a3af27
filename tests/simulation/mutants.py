"""Faults put into the protocol and the core, one at a time. The simulator must find each.

    python -m tests.simulation.mutants [NUMBER ...] [--seeds A:B | --kept]

Each is a change of one place in the source, made while the module is imported. A process of its own
simulates seeds until one fails; or, with --kept, the run of `kept.py` that has failed by it. Prints
a table: number, what breaks, the seeds it took.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from typing import NamedTuple


class Edit(NamedTuple):
    """In `module` the text `right`, which occurs once, becomes `wrong`."""

    module: str
    right: str
    wrong: str


class Mutant:
    """A fault: what it breaks, and the edits that make it."""

    def __init__(self, breaks, *edits):
        self.breaks = breaks
        self.edits = [Edit(*edits)] if isinstance(edits[0], str) else edits


MUTANTS = [
    Mutant(
        "a means' result is sent before the log says what it is made of",
        "washp2p.rounds.exchange",
        "        log(done)\n        for follow_up in then:\n            follow_up()\n",
        "        for follow_up in then:\n            follow_up()\n        log(done)\n",
    ),
    Mutant(
        "seeds are published before they are in the journal",
        "coordinator.service.command_runner",
        "self._journal.commit()  # before anybody hears of it",
        "pass",
    ),
    Mutant(
        "a roster begins in a round whose seed is out",
        "coordinator.machine.population",
        "first=self.published + 1,",
        "first=self.published,",
    ),
    Mutant(
        "who goes on learns of no roster that came while it was away",
        "coordinator.machine.population",
        "if roster.generation >= generations:",
        "if roster.generation > generations:",
    ),
    Mutant(
        "one seed is missing after a connection is back",
        "washp2p.coordinator_link.conversation",
        "Back(generations, self.state.seeds.until)",
        "Back(generations, self.state.seeds.until + 1)",
    ),
    Mutant(
        "what was said to a coordinator that died is not said again",
        "washp2p.coordinator_link.conversation",
        "yield from list(self._milestones)",
        "yield from ()",
    ),
    Mutant(
        "seeds depend on who is told of them",
        "coordinator.machine.publication",
        "[round_seed(self._key, number) for number in numbers]",
        "[round_seed(self._key, number + len(roster.members) % 2) for number in numbers]",
    ),
    Mutant(
        "an average stands as soon as one member holds it",
        "coordinator.machine.membership",
        "if all(m.averaged == (generation, number) for m in enrolled):",
        "if any(m.averaged == (generation, number) for m in enrolled):",
    ),
    Mutant(
        "a member that is lost stays in the roster",
        "coordinator.machine.membership",
        'yield from population.drop(member, "died: its connection is closed")',
        "pass",
    ),
    Mutant(
        "an older write overwrites a newer one",
        "washp2p.rounds.merging",
        "if len(self._newest_writes):\n            free",
        "if False:\n            free",
    ),
    Mutant(
        "writes of a round are forgotten while an older one is out",
        "washp2p.rounds.exchange",
        "            self.merger.forget(self.arrivals.oldest)\n",
        "            self.merger.forget(self.arrivals.oldest + 1)\n",
    ),
    Mutant(
        "only the newest round notes its writes",
        "washp2p.rounds.exchange",
        "older_waits = older_waits or bool(leg.missing)",
        "older_waits = bool(leg.missing)",
    ),
    Mutant(
        "values are applied as a difference from what is there now",
        "washp2p.rounds.exchange",
        "leg.own = self._store.keep(staged.receive)",
        "leg.own = self._store.keep(staged.send)",
    ),
    Mutant(
        "a frame that comes before its round is lost",
        "washp2p.rounds.arrivals",
        "            self._hold(frame, payload)\n",
        "            pass\n",
    ),
    Mutant(
        "a member waits one round less than the bound demands",
        "washp2p.rounds.round_loop",
        "due = number - bound",
        "due = number - bound - 1",
    ),
    Mutant(
        "lost values are counted wrong",
        "washp2p.rounds.arrivals",
        "self.lost[why] += end - begin",
        "self.lost[why] += end - begin + 1",
    ),
    Mutant(
        "a link that works again does not tell what it has lost",
        "washp2p.rounds.inbox",
        "self._exchange.resume(peer)",
        "pass",
    ),
    Mutant(
        "what a link has lost is asked for by nobody",
        "washp2p.transports.transfer",
        "                    self._request(download, offset, length)\n",
        "                    pass\n",
    ),
    Mutant(
        "what came too late to be waited for is charged to its sender",
        "washp2p.rounds.arrivals",
        "self._given_up[sender] = max(self._given_up.get(sender, after), after)",
        "pass",
    ),
    Mutant(
        "who jumps over rounds refuses what it has got of them",
        "washp2p.rounds.arrivals",
        "            self._skip(range(last + 1, number))\n",
        "            pass\n",
    ),
    Mutant(
        "votes are lost with the roster in which they were given",
        "washp2p.rounds.round_loop",
        "if self._reported_in is not self._roster:",
        "if self._reported_in is None:",
    ),
    Mutant(
        "a frame is applied by a member for which it is not meant",
        Edit("washp2p.rounds.inbox", "elif header.receiver != me:", "elif header.receiver < 0:"),
        Edit(
            "coordinator.machine.compatibility",
            "if other is not member and other.endpoint == member.endpoint:",
            "if False:",
        ),
    ),
    Mutant(
        "a jump is not in the log",
        "washp2p.rounds.round_loop",
        "if jumps and self._log is not None:",
        "if False and self._log is not None:",
    ),
    Mutant(
        "a newcomer begins with another step than its donor's",
        "washp2p.member.startup",
        "donor.member, opened.snapshot.step)",
        "donor.member, opened.snapshot.step - 1)",
    ),
    Mutant(
        "a newcomer refuses the values of its first round",
        "washp2p.member.startup",
        "self._inbox.arrivals.begin_after(entry.first - 1)",
        "self._inbox.arrivals.begin_after(entry.first)",
    ),
    Mutant(
        "members do not begin with the same values",
        "washp2p.member.startup",
        "if taken is not own:",
        "if taken is None:",
    ),
    Mutant(
        "an average goes on with a roster that has changed",
        "washp2p.member.peer_average",
        "return connection.state.roster is not roster and not settled()",
        "return False",
    ),
    Mutant(
        "a mean replaces what it should pull",
        "washp2p.rounds.merging",
        "self._store.pull(places, means, self._weight())",
        "self._store.pull(places, means, 1.0)",
    ),
    Mutant(
        "the log lacks one of those whose values were applied",
        "washp2p.rounds.round_state",
        "return Applied(self.number, tuple(self.arrived), tuple(self.lost), self.leg)",
        "return Applied(self.number, tuple(self.arrived)[1:], tuple(self.lost), self.leg)",
    ),
    Mutant(
        "a coordinator that takes over does not hear who is busy",
        "washp2p.coordinator_link.conversation",
        "if self._last_busy.seconds:",
        "if False:",
    ),
    Mutant(
        "a newcomer waits for no donor that is away",
        "coordinator.machine.donors",
        "if there and there <= newcomer.useless.keys():",
        "if there and newcomer.useless:",
    ),
    Mutant(
        "a survey goes on with the members of the roster before",
        "washp2p.rounds.surveyor",
        "self._last[0] is roster",
        "len(self._last[0].members) >= len(roster.members)",
    ),
    Mutant(
        "members that are behind take a round for one without a checkpoint, once one is full",
        "washp2p.protocol.run_state",
        "            case Discard(number):\n",
        "            case Discard(number):\n                self._checkpoints.discard(number)\n",
    ),
    Mutant(
        "what was on its way to a coordinator that died counts before Back",
        "coordinator.machine.membership",
        "if not member.connected and isinstance(message, MILESTONES):",
        "if False:",
    ),
    Mutant(
        "who has to evaluate is asked of the first roster",
        "washp2p.member.peer_average",
        "first = connection.state.roster.members[0]",
        "first = connection.state.rosters[0].members[0]",
    ),
]


def put_in(mutant):
    """Let the module be imported with the fault in it.

    Raises ValueError if its text is not there once.
    """
    as_written = SourceFileLoader.get_code

    def get_code(loader, name):
        edits = [edit for edit in mutant.edits if edit.module == name]
        if not edits:
            return as_written(loader, name)
        source = loader.get_source(name)
        for _, right, wrong in edits:
            if source.count(right) != 1:
                raise ValueError(f"{name} has {source.count(right)} times {right!r}")
            source = source.replace(right, wrong)
        return compile(source, loader.path, "exec")

    SourceFileLoader.get_code = get_code


def main(arguments=None):
    """Find the mutants. Returns 1 if one is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, help="of the list (default: all)")
    parser.add_argument("--seeds", default="0:2000", help="A:B, half open (default: 0:2000)")
    parser.add_argument("--kept", action="store_true", help="simulate the run that is kept of it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        put_in(MUTANTS[given.numbers[0]])
        return _simulate_inside(MUTANTS[given.numbers[0]], given)
    missed = 0
    for number in given.numbers or range(len(MUTANTS)):
        command = [sys.executable, "-m", "tests.simulation.mutants", str(number), "--inside"]
        run = subprocess.run(
            [*command, "--seeds", given.seeds, *(["--kept"] if given.kept else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        last = (run.stdout.strip().splitlines() or [run.stderr[-300:]])[-1]
        found = run.returncode == 1 and " failed" in last
        missed += not found
        print(
            f"{number:3} {'found' if found else 'MISSED'}: {MUTANTS[number].breaks}: {last}",
            flush=True,
        )
    return 1 if missed else 0


def _simulate_inside(mutant, given):
    """Simulate with the fault in this process. Returns 1 if a run fails."""
    from tests.simulation.__main__ import failure, main
    from tests.simulation.kept import KEPT

    if not given.kept:
        return main(["--seeds", given.seeds, "--stop", "--jobs", "1"])
    failed = bool(failure(KEPT[mutant.breaks].run()))
    print("the kept run failed" if failed else "the kept run did not fail")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
