"""Run folders of processes that begin at the same time."""

from __future__ import annotations

import multiprocessing

from washp2p.runfolder import rundir


def make_some(where, queue):
    import os

    os.chdir(where)
    queue.put([str(rundir.default()) for _ in range(20)])


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path):
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    processes = [context.Process(target=make_some, args=(tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    names = [name for _ in processes for name in queue.get(timeout=30)]
    for process in processes:
        process.join()
    assert len(set(names)) == 60
    for name in names:
        rundir.check_name(name.removeprefix("runs/"))
