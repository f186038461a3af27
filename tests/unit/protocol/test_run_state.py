"""What a member knows of its run, while one thread writes it and others read it."""

from __future__ import annotations

import sys
import threading

import pytest

from washp2p.protocol.messages.from_coordinator import Checkpoint, NewRoster, Seeds
from washp2p.protocol.roster import Peer
from washp2p.protocol.run_state import RunState

PEERS = [Peer(member=m, endpoint=f"tcp://127.0.0.1:{9000 + m}", host="a") for m in range(2)]
ROUNDS, WINDOW = 4000, 8


@pytest.fixture
def state():
    made = RunState()
    made.member = 0
    made.take(NewRoster(0, 1, 0, [peer.row for peer in PEERS]))
    return made


@pytest.fixture
def often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_no_seed_of_a_round_that_is_over_stays_behind(state):
    roster = state.roster.digest()

    def hear():
        for first in range(1, ROUNDS, WINDOW):
            state.take(Seeds(0, roster, first, bytes(8 * WINDOW)))

    hearing = threading.Thread(target=hear)
    hearing.start()
    for number in range(1, ROUNDS + 1):
        state.seeds.reach(number)
    hearing.join(20)
    assert not [number for number in range(1, ROUNDS + 1) if number in state.seeds]


@pytest.mark.usefixtures("often")
def test_checkpoints_may_be_announced_while_others_are_saved(state):
    def hear():
        for number in range(1, ROUNDS + 1):
            state.take(Checkpoint(number))

    hearing = threading.Thread(target=hear)
    hearing.start()
    while hearing.is_alive():
        due = state.checkpoint_from(0)
        if due is not None:
            state.saved(due)
    assert state.checkpoint_from(ROUNDS + 1) is None
