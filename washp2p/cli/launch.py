"""`washp2p run`: starts a coordinator and its workers as processes of this machine.

The coordinator is `python -m coordinator`, as if a user had started it. Workers do what `python -m
workers` does. One process imports PyTorch and forks all workers (`workers.fork`). No process is
left behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from washp2p.errors import INTERRUPTED, RunStoppedError
from washp2p.runfolder.process_log import complain, message_of
from washp2p.runfolder.rundir import CONFIG, create

if TYPE_CHECKING:
    from asyncio import Future
    from asyncio.subprocess import Process
    from collections.abc import Sequence
    from pathlib import Path

END_SECONDS = 1.25
"""How long the other processes may take to end after a failure, an interrupt or the run's end."""
LAST_WORD_SECONDS = 0.5
"""How long the coordinator may take to tell its workers that the run is interrupted."""


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it was started by nohup
    SIGNALS.append(signal.SIGHUP)


class Launch:
    """One population on this machine. `coordinator` and `worker` are the flags of each program.

    The processes have process groups of their own, so the launch itself passes on an interrupt from
    the terminal. The `devices` are assigned to workers in turn. With `resume`, the launch goes on
    with the run in `folder`.
    """

    def __init__(
        self,
        n: int,
        coordinator: Sequence[str],
        worker: Sequence[str],
        folder: Path,
        *,
        devices: Sequence[str] = ("",),
        resume: bool = False,
    ) -> None:
        self._n = n
        self._coordinator_flags = coordinator
        self._worker_flags = worker
        self._folder = folder
        self._resume = resume
        self._devices = devices
        self._coordinator: list[Process] = []
        self._forking: Process
        self._listening: asyncio.Task[None]
        """Reads what `workers.fork` reports. It is kept here because asyncio drops a task that
        nobody refers to."""
        self._workers: dict[ForkedWorker, Path] = {}

    async def run(self) -> int:
        """Run the population to its end. Returns the coordinator's exit code.

        The workers' output goes to log files in the run folder. Raises UsageError if the folder has
        a run, RunStoppedError if a worker fails before the coordinator can tell why.
        """
        create(self._folder, go_on=self._resume)
        interrupted = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
        self._forking = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "workers.fork"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        try:
            coordinator, address = await self._start_coordinator()
            if address:
                self._start_workers(address)
            return await self._watch(coordinator, interrupted)
        finally:
            await self._end()

    async def _start_coordinator(self) -> tuple[Process, str]:
        """Start the coordinator. Returns it and its address; "" if it could not listen."""
        ready, ready_fd = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coordinator",
            *self._coordinator_flags,
            "--bind=tcp://127.0.0.1:*",
            f"{'--resume' if self._resume else '--run-dir'}={self._folder}",
            f"--ready-fd={ready_fd}",
            pass_fds=(ready_fd,),
            process_group=0,
        )
        self._coordinator.append(process)
        os.close(ready_fd)
        with os.fdopen(ready) as pipe:
            return process, (await asyncio.to_thread(pipe.readline)).strip()

    def _start_workers(self, address: str) -> None:
        """Ask `workers.fork` for workers. They begin once it has imported PyTorch."""
        threads = max(1, (os.cpu_count() or 1) // self._n)
        logs = self._folder / "log"
        logs.mkdir(exist_ok=True)
        flags = [f"--coordinator={address}", f"--run-dir={self._folder}", f"--threads={threads}"]
        assert self._forking.stdin is not None
        for number in range(self._n):
            log = logs / f"process-{number}.txt"
            device = f"--device={self._devices[number % len(self._devices)]}"
            wanted = {"arguments": [*flags, device, *self._worker_flags], "log": str(log)}
            self._forking.stdin.write(f"{json.dumps(wanted)}\n".encode())
            self._workers[ForkedWorker()] = log
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Read what `workers.fork` reports: a worker has begun, or has ended with a code."""
        assert self._forking.stdout is not None
        waiting = iter(self._workers)
        begun: dict[int, ForkedWorker] = {}
        while line := await self._forking.stdout.readline():
            told = json.loads(line)
            if "code" in told:
                begun[told["pid"]].has_ended(told["code"])
            else:
                begun[told["pid"]] = worker = next(waiting)
                worker.pid = told["pid"]
        for worker in self._workers:  # nobody can tell any more how they end
            worker.kill()
            worker.has_ended(-signal.SIGKILL)

    async def _watch(self, coordinator: Process, interrupted: asyncio.Event) -> int:
        end = asyncio.create_task(coordinator.wait())
        stop = asyncio.create_task(interrupted.wait())
        working = {asyncio.create_task(worker.wait()): log for worker, log in self._workers.items()}
        while not end.done():
            await asyncio.wait({end, stop, *working}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return INTERRUPTED
            for worker in [task for task in working if task.done()]:
                log = working.pop(worker)
                if not worker.result():
                    continue
                if not self._started():
                    return await self._explain(worker.result(), log, end)
                if not end.done():
                    line = _last_line(worker.result(), log)
                    complain(f"{line} (log: {log}); the others go on", "worker lost")
        stop.cancel()
        if working and end.result() == 0:
            await asyncio.wait(working, timeout=END_SECONDS)
        return end.result()

    @staticmethod
    async def _explain(code: int, log: Path, end: asyncio.Task[int]) -> int:
        """Return the exit code of the coordinator, if it ends soon after a worker has failed.

        It has then said why. If it does not end within END_SECONDS, raises RunStoppedError with the
        last line of the worker's `log`. `code` is the worker's exit code.
        """
        done, _ = await asyncio.wait({end}, timeout=END_SECONDS)
        if done:
            return end.result()
        raise RunStoppedError(f"{_last_line(code, log)} (log: {log})", code if code > 0 else 1)

    def _started(self) -> bool:
        """Whether the population has ever been complete. From then on some workers may fail."""
        return bool(json.loads((self._folder / CONFIG).read_text())["members"])

    async def _end(self) -> None:
        """Leave no process behind: ask the coordinator to end, then ask all, then kill.

        The coordinator tells its workers. If all were asked at once, workers would leave one by
        one.
        """
        await _ask_to_end(self._coordinator, LAST_WORD_SECONDS)
        if all(worker.pid for worker in self._workers):
            await _ask_to_end([*self._coordinator, *self._workers], END_SECONDS)
        for process in self._coordinator:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        for worker in self._workers:
            worker.kill()
        await _wait_for([worker for worker in self._workers if worker.pid], END_SECONDS)
        if self._forking.returncode is None:
            self._forking.kill()
        await self._forking.wait()


class ForkedWorker:
    """A worker that `workers.fork` forks, with the interface of asyncio's Process.

    `pid` is 0 until the worker has begun.
    """

    def __init__(self) -> None:
        self.pid = 0
        self._code: Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        """The worker's exit code, negative for a signal; None while it runs."""
        return self._code.result() if self._code.done() else None

    def has_ended(self, code: int) -> None:
        """Note that the worker has ended with exit code `code`."""
        if not self._code.done():
            self._code.set_result(code)

    def terminate(self) -> None:
        """Send SIGTERM to the worker."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the worker and its data loaders at once, if it runs."""
        if self.pid and self.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until it has ended. Returns its exit code."""
        return await asyncio.shield(self._code)


async def _ask_to_end(processes: Sequence[Process | ForkedWorker], seconds: float) -> None:
    for process in processes:
        if process.returncode is None:
            process.terminate()
    await _wait_for(processes, seconds)


async def _wait_for(processes: Sequence[Process | ForkedWorker], seconds: float) -> None:
    waits = [asyncio.create_task(p.wait()) for p in processes if p.returncode is None]
    if waits:
        await asyncio.wait(waits, timeout=seconds)


def _last_line(code: int, log: Path) -> str:
    """The last line of a failed worker's output, or the signal or code that it ended with."""
    if code < 0:
        return f"worker: killed by {signal.Signals(-code).name}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return message_of(lines[-1]) if lines else f"worker: ended with code {code}"
