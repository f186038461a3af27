"""The coordinator's server in this process, with workers that only speak the control protocol."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import zmq
import zmq.asyncio

from coordinator.service.server import Server
from coordinator.watch.display import Display
from coordinator.watch.observers import Observers
from tests.support.layouts import make_layout
from washp2p.config.config import RunConfig
from washp2p.protocol.messages.control import PROTOCOL, messages
from washp2p.protocol.messages.from_coordinator import (
    Finish,
    NewRoster,
    Ping,
    Seeds,
    Settled,
    Welcome,
)
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Averaging,
    Finished,
    Hello,
    Leave,
    Metrics,
    Progress,
    Synced,
)
from washp2p.protocol.roster import round_seed, run_key, unpack_seeds
from washp2p.protocol.version import DERIVATION, VERSION
from washp2p.runfolder.process_log import Log

ROUNDS = 400


class Worker:
    """One worker's end of the control plane."""

    def __init__(self, context, address):
        self.dealer = context.socket(zmq.DEALER)
        self.dealer.connect(address)

    async def tell(self, message):
        await self.dealer.send(messages.encode(message))

    async def hear(self):
        while isinstance(message := messages.decode(await self.dealer.recv()), Ping):
            pass
        return message

    async def join(self):
        await self.tell(Hello(PROTOCOL, DERIVATION, VERSION, "h", 1))
        welcome = await self.hear()
        assert isinstance(welcome, Welcome)
        layout = make_layout([[9, 3], [12]]).to_wire()
        endpoint = f"tcp://127.0.0.1:{1 + welcome.member}"
        await self.tell(Attach(layout, endpoint, [], "here", b"", ROUNDS, {}, ""))
        return welcome

    async def train(self):
        """From roster to accounts; the seeds it was given, and the bytes they took."""
        assert isinstance(await self.hear(), NewRoster)
        await self.tell(Synced(0))
        seeds, size = [], 0
        while len(seeds) < ROUNDS:
            message = await self.hear()
            assert isinstance(message, Seeds)
            assert message.first == len(seeds) + 1
            seeds += unpack_seeds(message.seeds)
            size += len(messages.encode(message))
            await self.tell(Progress(len(seeds)))
        await self.tell(Metrics({"loss": 0.5}))
        await self.tell(Averaging(1, ROUNDS))
        await self.tell(Averaged(0, 1))
        assert isinstance(await self.hear(), Settled)
        theory = (1, 1.0, 1.0, 1.0, 1.0)
        await self.tell(Finished(ROUNDS, ROUNDS, 2.0, 0.5, "0", 10, {}, 0, {}, *theory))
        assert isinstance(await self.hear(), Finish)
        await self.tell(Accounts([]))
        return seeds, size


@pytest.fixture
def server(tmp_path):
    """Starts a server task; gives the task and its address."""

    async def start():
        ready, ready_fd = os.pipe()
        config = RunConfig.resolve(n=3, seed=5)
        folder = tmp_path / "run"
        task = asyncio.create_task(
            Server(config, folder, Observers(Display(Log()), folder)).serve(
                "tcp://127.0.0.1:*", ready_fd=ready_fd
            )
        )
        with os.fdopen(ready) as pipe:
            return task, (await asyncio.to_thread(pipe.readline)).strip()

    return start


@pytest.mark.asyncio
async def test_a_whole_run(server, tmp_path):
    task, address = await server()
    with zmq.asyncio.Context() as context:
        workers = [Worker(context, address) for _ in range(3)]
        welcomes = [await worker.join() for worker in workers]
        assert [welcome.member for welcome in welcomes] == [0, 1, 2]
        heard = await asyncio.gather(*(worker.train() for worker in workers))
        assert await asyncio.wait_for(task, 10) == 0
        for worker in workers:
            worker.dealer.close(linger=0)
    key = run_key(5)
    assert all(seeds == [round_seed(key, t) for t in range(1, ROUNDS + 1)] for seeds, _ in heard)
    assert all(size <= 32 * ROUNDS for _, size in heard)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["seeds_received"] for row in summary["bytes"]] == [size for _, size in heard]
    assert (summary["rounds"], summary["rounds_per_second"]) == (ROUNDS, ROUNDS / 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert sorted(line.pop("member") for line in metrics) == [0, 1, 2]
    assert metrics == [{"loss": 0.5}] * 3


@pytest.mark.asyncio
async def test_a_worker_that_vanishes_after_the_start_is_left_behind_by_the_others(server):
    task, address = await server()
    with zmq.asyncio.Context() as context:
        workers = [Worker(context, address) for _ in range(3)]
        for worker in workers:
            await worker.join()
        for worker in workers:
            assert isinstance(await worker.hear(), NewRoster)
        workers[1].dealer.close(linger=0)
        for other in (0, 2):
            message = await asyncio.wait_for(workers[other].hear(), 5)
            assert isinstance(message, NewRoster)
            assert [member for member, *_ in message.peers] == [0, 2]
        workers[0].dealer.close(linger=0)
        assert isinstance(await asyncio.wait_for(workers[2].hear(), 5), NewRoster)
        await workers[2].tell(Leave("tired", 1))
        message = await asyncio.wait_for(task, 10)
        assert message == 1
        workers[2].dealer.close(linger=0)
