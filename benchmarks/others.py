"""What others do in place of a round: the other sides of the exchange benchmark."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from importlib.util import find_spec

import torch
import torch.distributed as dist
import zmq

HIVEMIND = find_spec("hivemind") is not None


class Floor:
    """Bare ZeroMQ: messages of a round's sizes in its pattern, and nothing else.

    `sizes` has the bytes for each rank; collective over torch.distributed's default group.
    """

    def __init__(self, rank: int, scheme: str, sizes: list[int]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._pull = context.socket(zmq.PULL)
        address = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc:///tmp/floor-{os.getpid()}"
        self._pull.bind(address)
        endpoints = [""] * len(sizes)
        dist.all_gather_object(endpoints, self._pull.get_string(zmq.LAST_ENDPOINT))
        self._peers = []
        for peer, endpoint in enumerate(endpoints):
            if peer != rank:
                push = context.socket(zmq.PUSH)
                push.connect(endpoint)
                self._peers.append((push, bytes(sizes[peer])))

    def round(self) -> None:
        """Send one message to each peer, take one of each."""
        for push, message in self._peers:
            push.send(message)
        for _ in self._peers:
            self._pull.recv()


def sparta(parameters: list[torch.Tensor], p: float, generator: torch.Generator) -> None:
    """One exchange of SPARTA: for every tensor a mask from rank 0, then an all-reduce of it."""
    for parameter in parameters:
        mask = torch.rand(parameter.shape, generator=generator) < p
        dist.broadcast(mask, 0)
        values = parameter[mask]
        dist.all_reduce(values)
        parameter[mask] = values / dist.get_world_size()


class Hivemind:
    """hivemind's DecentralizedAverager without compression, one group of all ranks.

    To be made before there are other threads: hivemind forks.
    """

    def __init__(self, rank: int, size: int, values: int) -> None:
        warnings.simplefilter("ignore")
        import hivemind  # never a dependency
        from hivemind.averaging import DecentralizedAverager
        from hivemind.utils.timed_storage import get_dht_time

        multiprocessing.set_start_method("fork", force=True)  # hivemind knows no other
        self._now = get_dht_time
        peers: list[list[str]] = [[]]
        if rank == 0:
            self._dht = hivemind.DHT(start=True)
            peers = [[str(address) for address in self._dht.get_visible_maddrs()]]
        dist.broadcast_object_list(peers, 0)
        if rank:
            self._dht = hivemind.DHT(initial_peers=peers[0], start=True)
        self._averager = DecentralizedAverager(
            [torch.zeros(values)],
            self._dht,
            prefix="benchmark",
            target_group_size=size,
            min_group_size=size,
            min_matchmaking_time=0.5,
            request_timeout=0.4,
            start=True,
        )

    def prepare(self) -> None:
        """Find the group for the next `average`."""
        self._step = self._averager.step(
            wait=False, scheduled_time=self._now() + 3, timeout=60, require_trigger=True
        )
        while self._step.stage.name != "AWAITING_TRIGGER":
            if self._step.done():
                self._step.result()
            time.sleep(0.01)  # it has no event to wait for

    def average(self) -> None:
        """One average of all parameters, the group being found."""
        self._step.allow_allreduce()
        self._step.result(60)

    def close(self) -> None:
        """End hivemind's processes."""
        self._averager.shutdown()
        self._dht.shutdown()
