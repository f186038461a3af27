"""Forks a machine's workers from one process that has imported PyTorch for all of them.

Importing PyTorch takes seconds of CPU time, so `washp2p run` starts this one program in place of N.
Each line of its input asks for a worker. Each line of its output says that a worker has started or
ended. All lines are JSON. The program ends when its input ends; its workers go on.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

PRELOADED = (
    "torch",
    "torchvision",
    "sklearn.datasets",
    "sklearn.model_selection",
    "washp2p.driver.joining",
    "workers.__main__",
    "workers.training.data",
    "workers.training.evaluate",
    "workers.training.trainer",
)
FROM_OUTSIDE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that a terminal or a user may send to all processes of a run."""


def main() -> int:
    """Fork workers until the input ends."""
    for name in PRELOADED:
        import_module(name)
    children, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # The end of the input ends this program, and nothing else: it tells how workers ended.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in FROM_OUTSIDE}
    asked = os.fdopen(0, "rb", buffering=0, closefd=False)
    with selectors.DefaultSelector() as selector:
        selector.register(asked, selectors.EVENT_READ)
        selector.register(children, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == children:
                    os.read(children, 4096)
                    _tell_of_ended()
                elif line := asked.readline():
                    if pid := os.fork():
                        _tell({"pid": pid})
                        continue
                    signal.set_wakeup_fd(-1)
                    for number, handler in {**handlers, signal.SIGCHLD: signal.SIG_DFL}.items():
                        signal.signal(number, handler)
                    for pipe in (children, wakeup):
                        os.close(pipe)
                    _be_worker(**json.loads(line))
                else:
                    return 0


def _tell_of_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(what: dict[str, int]) -> None:
    print(json.dumps(what), flush=True)


def _be_worker(arguments: Sequence[str], log: str) -> NoReturn:
    """Run a worker in a process group of its own. Its output goes to the file `log`."""
    from workers.__main__ import main as work

    os.setpgid(0, 0)
    with open(log, "wb") as output, open(os.devnull, "rb") as nothing:  # noqa: PTH123 - for dup2
        os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    sys.exit(work(arguments))


if __name__ == "__main__":
    sys.exit(main())
