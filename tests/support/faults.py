"""Populations whose members can be held at a named point, killed, stopped and cut off.

Workers come from the fork server as in tests/process; each may live on a host of its own (a
network namespace). A member is held by its worker process itself: it says so on a pipe and waits
there until it is let go. The fault comes from outside.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from tests.support.hosts import on_host
from tests.support.population import LOOPBACK
from tests.support.processes import FORKSERVER, Coordinator, Worker, read_logs, work
from washp2p.plan.plan import Deriver
from washp2p.protocol.rates import layer_rates
from washp2p.protocol.roster import roster_at, round_seed, run_key
from washp2p.rounds import hold_points
from washp2p.runfolder import rundir
from washp2p.runfolder.roster_store import read_rosters
from washp2p.runfolder.runlog import Joined, Record


def _work(arguments, output, host, hold_at, pipe, slow):
    """A worker that is held the first time it comes to `hold_at` = (point, round).

    Where the point is "poisoned", it goes on instead with a parameter that is not a number.
    Given the pipe `slow` it trains at 20 rounds a second until that pipe is closed.
    """
    if hold_at is not None and hold_at[0] == "poisoned":
        _poison_in(hold_at[1])
    held = hold_at is None

    def hold(point, number):
        nonlocal held, slow
        if not held and point == hold_at[0] and number >= hold_at[1]:
            held = True
            pipe.send(number)
            pipe.recv()
        if slow is not None and point == hold_points.BEFORE_SEND and slow.poll(1 / 20):
            slow = None

    hold_points.reach = hold
    work(arguments, output, host)


def _poison_in(round_number):
    from workers.training.trainer import Trainer

    learning_rate = Trainer._learning_rate
    poisoned = []

    def poison(self):
        if self.round + 1 == round_number and not poisoned:
            poisoned.append(True)
            next(self.model.parameters()).data.fill_(float("nan"))
        return learning_rate(self)

    Trainer._learning_rate = poison


class HeldWorker(Worker):
    """A worker process that can be held."""

    def __init__(self, arguments, output, host=None, hold_at=None, slow=None):
        self.pipe, theirs = FORKSERVER.Pipe()
        super().__init__(arguments, output, host, hold_at, theirs, slow, target=_work)
        theirs.close()

    def wait_until_held(self, seconds=60):
        """Block until it is where it is to be held; in which round."""
        assert self.pipe.poll(seconds), f"never held:\n{self.text}"
        return self.pipe.recv()

    def let_go(self):
        """It may go on."""
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(None)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def close(self):
        super().close()
        self.pipe.close()


class Hosts:
    """A coordinator and workers, each on a host of its own if links are to be cut."""

    def __init__(self, folder, hosts=()):
        self.folder = folder / "run"
        self._data = folder
        self._hosts = list(hosts)
        self.coordinators = []
        self.workers = []
        self._slow, self._hurry = FORKSERVER.Pipe(duplex=False)

    def coordinator(self, *flags, resume=False):
        """Start it, or one in its place: where members are to come back, or to `resume`."""
        before = self.coordinators[-1] if self.coordinators else None
        bind = before.address if before else LOOPBACK
        where = []
        if self._hosts:
            name, address = self._hosts[0]
            bind = bind if before else f"tcp://{address}:5555"
            where = on_host(name)
            flags = (*flags, "--insecure")
        made = Coordinator(flags, self.folder, bind=bind, where=where, resume=resume)
        self.coordinators.append(made)
        return made

    def worker(self, hold_at=None, *flags, slow=False):
        """Start one more, which may be `slow` until the test is in a `hurry`.

        One slow member slows all in lockstep: there is time to bring one back in a short run.
        """
        number = len(self.workers)
        host = self._hosts[1 + number][0] if self._hosts else None
        arguments = [f"--coordinator={self.coordinators[0].address}", "--threads=1"]
        arguments += [f"--run-dir={self.folder}", f"--data-dir={self._data}", *flags]
        arguments += ["--insecure"] * bool(self._hosts)
        output = self._data / f"worker-{number}.txt"
        self.workers.append(
            HeldWorker(arguments, output, host, hold_at, self._slow if slow else None)
        )
        return self.workers[-1]

    def hurry(self):
        """Nobody is slow any more."""
        self._hurry.close()

    def come_late(self, coordinator, words):
        """Two members train; once the coordinator prints `words` a third comes, and all finish."""
        workers = [self.worker(slow=True) for _ in range(2)]
        coordinator.until(words)
        workers.append(self.worker())
        coordinator.until("takes part")
        self.hurry()
        assert [worker.wait() for worker in workers] == [0, 0, 0]
        assert coordinator.wait() == 0, coordinator.text
        return Story(self.folder)

    def cut(self, worker, *, both_ways):
        """Drop what a worker's host sends, and if `both_ways` what it is sent."""
        self._rules(worker, "-A", both_ways=both_ways)

    def restore(self, worker, *, both_ways):
        self._rules(worker, "-D", both_ways=both_ways)

    def cut_between(self, one, other):
        """Drop what one worker's host is sent by another's; nothing else."""
        self._between(one, other, "-A")

    def restore_between(self, one, other):
        self._between(one, other, "-D")

    def _between(self, one, other, action):
        name, _ = self._hosts[1 + self.workers.index(one)]
        _, address = self._hosts[1 + self.workers.index(other)]
        rule = ["iptables", "-w", action, "INPUT", "-s", address, "-j", "DROP"]
        subprocess.run([*on_host(name), *rule], check=True)

    def _rules(self, worker, action, *, both_ways):
        name, _ = self._hosts[1 + self.workers.index(worker)]
        for chain in ("OUTPUT", "INPUT") if both_ways else ("OUTPUT",):
            rule = ["iptables", "-w", action, chain, "!", "-i" if chain == "INPUT" else "-o", "lo"]
            subprocess.run([*on_host(name), *rule, "-j", "DROP"], check=True)

    def close(self):
        for worker in self.workers:
            worker.close()
        for coordinator in self.coordinators:
            coordinator.kill()
        self._hurry.close()
        self._slow.close()


def no_iptables():
    done = subprocess.run(["which", "iptables"], capture_output=True, check=False)
    return "needs iptables to cut links" if done.returncode else None


class Story:
    """What a run's folder says happened in it."""

    def __init__(self, folder):
        self.folder = folder
        self.summary = rundir.read_summary(folder)
        self.config = rundir.read_config(folder)
        self.rosters = read_rosters(folder / rundir.JOURNAL)
        self.logs = read_logs(folder)

    def assert_rosters_agree(self):
        """In every round every member was in the epoch that the journal has for it."""
        for member, records in self.logs.items():
            for record in records:
                if isinstance(record, Record):
                    roster = roster_at(self.rosters, record.round)
                    assert record.generation >= roster.generation  # it is its own step's
                    assert member in roster.members
                    assert {*record.applied, *record.lost} <= set(roster.members) - {member}

    def lost_values(self, member, layout):
        """How many values a member's log says it lost, by the plans."""
        key = run_key(self.config.seed)
        rates = layer_rates(self.config.method.schedule, self.config.method.p, layout.layers)
        count = 0
        for record in self.logs[member]:
            if isinstance(record, Record) and record.lost:
                roster = roster_at(self.rosters, record.round)
                position = roster.position(member)
                method = self.config.method
                deriver = Deriver(
                    *(layout, rates, len(roster.members), position),
                    group=method.group,
                    block=method.block,
                )
                plan = deriver.derive(round_seed(key, record.round))
                spans = {roster.members[p]: end - begin for p, begin, end in plan.receive.parts}
                count += sum(spans[sender] for sender in record.lost)
        return count

    def joined(self):
        return {
            member: record
            for member, records in self.logs.items()
            for record in records
            if isinstance(record, Joined)
        }
