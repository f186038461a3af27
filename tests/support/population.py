"""Members of a benchmark: real processes that join a real coordinator on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.support.hosts import on_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.queues import SimpleQueue


LOOPBACK = "tcp://127.0.0.1:*"


@contextmanager
def coordinator(
    *flags: str, host: tuple[str, str] | None = None, folder: Path | None = None
) -> Iterator[str]:
    """A coordinator process while the block lasts; its address. See `coordinator_process`."""
    with coordinator_process(*flags, host=host, folder=folder) as (address, _):
        yield address


@contextmanager
def coordinator_process(
    *flags: str, host: tuple[str, str] | None = None, folder: Path | None = None
) -> Iterator[tuple[str, int]]:
    """A coordinator process while the block lasts; its address and process id.

    `host` is the network namespace it runs in and the address there (default: loopback here);
    `folder` is for the run's files (default: one that is gone afterwards).
    """
    where: list[str] = []
    bind = LOOPBACK
    if host is not None:
        where = on_host(host[0])
        bind = f"tcp://{host[1]}:*"
        flags = (*flags, "--insecure")
    with tempfile.TemporaryDirectory() as temporary:
        process, address = start_coordinator(
            *flags,
            folder=folder or Path(temporary) / "run",
            bind=bind,
            where=where,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield address, process.pid
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def start_coordinator(
    *flags: str,
    folder: Path,
    bind: str = LOOPBACK,
    where: Sequence[str] = (),
    resume: bool = False,
    **options: Any,
) -> tuple[subprocess.Popen[str], str]:
    """Start a coordinator; the process, and its address once it listens (empty if it cannot).

    `where` is a command to run it with; `options` are subprocess.Popen's.
    """
    run = "--resume" if resume else "--run-dir"
    ready, ready_fd = os.pipe()
    command = [*where, sys.executable, "-m", "coordinator", *flags, f"--bind={bind}"]
    process = subprocess.Popen(
        [*command, f"{run}={folder}", f"--ready-fd={ready_fd}"],
        pass_fds=(ready_fd,),
        text=True,
        **options,
    )
    os.close(ready_fd)
    with os.fdopen(ready) as pipe:
        return process, pipe.readline().strip()


def rendezvous(name: str) -> str:
    """Where the ranks of a benchmark find each other."""
    return f"/tmp/washp2p-{os.getpid()}-{name}"


def gather(rank: int, store: str, n: int) -> None:
    """Be one of `n` ranks of torch.distributed on this machine."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)


def in_processes(n: int, work: Callable[..., object], *arguments: object) -> list[object]:
    """`work(rank, *arguments)` in n new processes of one thread each; what rank k returned."""
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_call, args=(queue, rank, work, arguments)) for rank in range(n)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(queue.get() for _ in processes)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    failed = [result for result in results.values() if isinstance(result, _Failure)]
    if failed:
        raise RuntimeError(f"a benchmark's process failed: {failed[0].reason}")
    return [results[rank] for rank in range(n)]


def _call(
    queue: SimpleQueue[tuple[int, object]],
    rank: int,
    work: Callable[..., object],
    arguments: Sequence[object],
) -> None:
    torch.set_num_threads(1)
    try:
        queue.put((rank, work(rank, *arguments)))
    except Exception as error:  # whatever it is, the parent must hear of it
        queue.put((rank, _Failure(repr(error))))
        raise


@dataclass
class _Failure:
    reason: str
