"""A member and its seeds, against a coordinator that the test plays by hand."""

from __future__ import annotations

import threading

import pytest
import torch
import zmq

import washp2p
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Finish, NewRoster, Seeds, Settled, Welcome
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Attach,
    Averaged,
    Finished,
    Leave,
    Progress,
    Synced,
)
from washp2p.protocol.roster import Peer, Roster, pack_seeds

WINDOW = 8


class StingyCoordinator(threading.Thread):
    """Takes one member and gives it a window of seeds only when it says that it has none left."""

    def __init__(self):
        super().__init__(daemon=True)
        self.router = zmq.Context.instance().socket(zmq.ROUTER)
        self.router.set(zmq.LINGER, 0)
        self.router.set(zmq.RCVTIMEO, 20_000)
        port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self.progress = []
        self.left = None

    def run(self):
        while True:
            self.identity, data = self.router.recv_multipart()
            if not self.answer(messages.decode(data)):
                break
        self.router.close()

    def answer(self, message):
        match message:
            case Attach(endpoint=endpoint):
                peer = Peer(member=0, endpoint=endpoint, host="h")
                self.roster = Roster(generation=0, peers=(peer,))
                self.tell(NewRoster(0, 1, 0, self.roster.rows))
            case Synced():
                self.publish(1)
            case Progress(rounds):
                self.progress.append(rounds)
                if rounds % WINDOW == 0 and rounds == max(self.progress):
                    self.publish(rounds + 1)
            case Averaged():
                self.tell(Settled(0, 1, [0]))
            case Finished():
                self.tell(Finish())
            case Accounts():
                return False
            case Leave(reason):
                self.left = reason
                return False
            case _:
                config = RunConfig.resolve(n=2, method="none")
                self.tell(Welcome(0, b"12345678", b"12345678", "x", config.to_wire(), False))
        return True

    def publish(self, first):
        self.tell(Seeds(0, self.roster.digest(), first, pack_seeds([7] * WINDOW)))

    def tell(self, message):
        self.router.send_multipart((self.identity, messages.encode(message)))


@pytest.fixture
def coordinator():
    thread = StingyCoordinator()
    thread.start()
    yield thread
    thread.join(30)
    assert not thread.is_alive()


def model_and_optimizer():
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_member_without_seeds_says_so(coordinator):
    """However early its last report was: the coordinator's clock may have slowed down since."""
    model, optimizer = model_and_optimizer()
    with washp2p.join(coordinator.address, model, optimizer) as member:
        for _ in range(5 * WINDOW):
            optimizer.step()
        assert member.round == 5 * WINDOW
    assert {8, 16, 24, 32} <= set(coordinator.progress)


def test_more_steps_than_were_announced_are_refused(coordinator):
    model, optimizer = model_and_optimizer()

    def train():
        with washp2p.join(coordinator.address, model, optimizer, rounds=3):
            for _ in range(4):
                optimizer.step()

    with pytest.raises(UsageError, match="step 4 of member 0, which joined for 3 rounds"):
        train()
    optimizer.step()  # is the optimizer's own again
    coordinator.join(10)
    assert coordinator.left.startswith("step 4 of member 0")
