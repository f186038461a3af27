"""Simulate many populations: python -m tests.simulation --seeds 0:1000."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from itertools import count

import torch

from tests.simulation.checks import check
from tests.simulation.scenarios import scenario


def main(arguments=None):
    """Simulate each seed's run. Returns 1 if any fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="A:B, half open (default: 0:1000)")
    parser.add_argument("--minutes", type=float, help="go on from A until so much time has passed")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    given = parser.parse_args(arguments)
    first, stop = map(int, given.seeds.split(":"))
    torch.set_num_threads(1)
    logging.getLogger("washp2p").setLevel(logging.ERROR)
    began = time.monotonic()
    done = failed = rounds = 0
    for seed in range(first, stop) if given.minutes is None else count(first):
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            break
        done += 1
        try:
            run = scenario(seed).run()
            run.finish()
            check(run)
            rounds += sum(
                process.core.parts.round_loop.steps
                for process in run.processes.values()
                if process.core is not None
            )
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"repeat it: python -m tests.simulation --seeds {seed}:{seed + 1}", flush=True)
            if given.stop:
                break
    seconds = time.monotonic() - began
    print(f"{rounds} member-rounds, {60 * rounds / seconds:.0f} a minute")
    print(f"{done} seeds, {failed} failed, {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
