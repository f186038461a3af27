"""Simulate many populations: python -m tests.simulation --seeds 0:1000."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice, takewhile

import torch

from tests.simulation.checks import check
from tests.simulation.scenarios import scenario

AT_ONCE = 20
"""Seeds that a process simulates before it reports."""


def main(arguments=None):
    """Simulate each seed's run. Returns 1 if any fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="A:B, half open (default: 0:1000)")
    parser.add_argument("--minutes", type=float, help="go on from A until so much time has passed")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all)")
    parser.add_argument("--faults", help="of one seed's faults only these, as 0,2")
    parser.add_argument("--rounds", type=int, help="of one seed's rounds only so many")
    given = parser.parse_args(arguments)
    first, stop = map(int, given.seeds.split(":"))
    began = time.monotonic()
    if given.faults is not None or given.rounds is not None:
        _quiet()
        kept = None if given.faults is None else [int(k) for k in given.faults.split(",") if k]
        text = failure(_shortened(scenario(first), kept, given.rounds).run())
        print(text or "it does not fail")
        return 1 if text else 0
    seeds = iter(range(first, stop))
    if given.minutes is not None:
        seeds = takewhile(lambda _: time.monotonic() - began < 60 * given.minutes, count(first))
    done = failed = rounds = 0
    struck = Counter()
    for seed, its_rounds, its_faults, text in _simulated(seeds, given.jobs):
        done, rounds = done + 1, rounds + its_rounds
        struck += its_faults
        if not done % 1000:
            print(f"{done} seeds so far, {failed} failed", flush=True)
        if text:
            failed += 1
            print(text)
            print(f"repeat it: python -m tests.simulation --seeds {seed}:{seed + 1}", flush=True)
            if given.stop:
                break
            print(f"a shorter one: {shorter(scenario(seed))}", flush=True)
    seconds = time.monotonic() - began
    for kind, states in _by_kind(struck).items():
        print(f"{kind} {states.total()}: {', '.join(f'{s} {n}' for s, n in states.most_common())}")
    print(f"{rounds} member-rounds, {60 * rounds / seconds:.0f} a minute")
    print(f"{done} seeds, {failed} failed, {seconds:.1f} s")
    return 1 if failed else 0


def _quiet():
    torch.set_num_threads(1)
    logging.getLogger("washp2p").setLevel(logging.ERROR)


def _simulated(seeds, jobs):
    """By seed: the member-rounds of its run, its faults, and the traceback if it failed."""
    if jobs == 1:
        _quiet()
        for seed in seeds:
            yield _one(seed)
        return
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        while batch := list(islice(seeds, AT_ONCE * jobs)):
            yield from pool.map(_one, batch, chunksize=AT_ONCE // 2)


def _one(seed):
    run = scenario(seed).run()
    text = failure(run)
    rounds = sum(p.core.parts.round_loop.steps for p in run.processes.values() if p.core)
    return seed, rounds, run.faults.struck, text


def _by_kind(struck):
    """Counts by kind of fault, then by state."""
    found = defaultdict(Counter)
    for (kind, state), times in sorted(struck.items()):
        found[kind][state] += times
    return found


def failure(run):
    """Simulate a run. Returns the traceback of the promise that was not kept, or ""."""
    try:
        run.finish()
        check(run)
    except Exception:
        return traceback.format_exc()
    return ""


def _shortened(its, kept, rounds):
    """A scenario with those of its faults alone whose numbers are `kept` (None: with all)."""
    faults = its.faults if kept is None else tuple(its.faults[k] for k in kept)
    return its._replace(faults=faults, rounds=rounds or its.rounds)


def shorter(its):
    """The command for a schedule with fewer faults and rounds that still fails."""
    kept = list(range(len(its.faults)))

    def fails(faults, rounds):
        return bool(failure(_shortened(its, faults, rounds).run()))

    for fault in list(kept):
        fewer = [other for other in kept if other != fault]
        if fails(fewer, its.rounds):
            kept = fewer
    rounds, least = its.rounds, its.options.get("every", 3)  # else nothing is exchanged
    while rounds * 3 // 4 >= least and fails(kept, rounds * 3 // 4):
        rounds = rounds * 3 // 4
    faults = ",".join(map(str, kept))
    seeds = f"--seeds {its.seed}:{its.seed + 1}"
    return f"python -m tests.simulation {seeds} --faults '{faults}' --rounds {rounds}"


if __name__ == "__main__":
    sys.exit(main())
