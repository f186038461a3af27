"""Values between GPUs by NCCL: as over gloo, on devices that are there.

Two GPUs, or one that NCCL lets two ranks share, which it does from 2.30 on if it is told to.
"""

from __future__ import annotations

import pytest
import torch

from washp2p.protocol.ledger import Channel, Count, Kind
from washp2p.protocol.patience import Patience
from washp2p.transports.torch_p2p import TorchTransport

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture
def devices(monkeypatch):
    """Two devices for two ranks."""
    count = torch.cuda.device_count()
    if count > 1:
        return "cuda:0", "cuda:1"
    if not count:
        pytest.skip("needs two CUDA devices, or one that NCCL 2.30 can share; there is none")
    if torch.cuda.nccl.version() < (2, 30):
        pytest.skip(f"needs two CUDA devices, or NCCL 2.30; it is {torch.cuda.nccl.version()}")
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    return "cuda:0", "cuda:0"


@pytest.fixture
def pair(devices):
    made = [TorchTransport(f"torch://127.0.0.1:*/{device}", Patience(2)) for device in devices]
    made[0].connect(1, made[1].endpoint)
    made[1].connect(0, made[0].endpoint)
    yield made
    for transport in made:
        transport.close()


def test_values_stay_on_devices(pair, devices):
    a, b = pair
    for number in range(20):
        slots = [torch.arange(1000.0, device=devices[0]) + number for _ in range(2)]
        back = torch.full((10,), number, dtype=torch.bfloat16, device=devices[1])
        torch.cuda.synchronize()
        a.send(1, Kind.EXCHANGE, b"there", [slot[10:500] for slot in slots])
        b.send(0, Kind.EXCHANGE, b"back", [back])
        payload = b.receive(30).payload
        assert payload.device == torch.device(devices[1])
        assert payload.view(torch.float32).cpu().equal(torch.cat([s[10:500].cpu() for s in slots]))
        assert a.receive(30).payload.view(torch.bfloat16).tolist() == [number] * 10
    a.send(1, Kind.STATE, b"host", [memoryview(b"chunk")])
    assert bytes(b.receive(30).payload) == b"chunk"
    assert a.ledger.counts == {
        Channel(1, Kind.EXCHANGE, "nccl"): Count(20 * 2 * 490 * 4, 100, 20),
        Channel(1, Kind.STATE, "gloo"): Count(5, 4, 1),
    }


def test_the_end_of_a_peer_breaks_the_link_within_patience(pair, devices):
    a, b = pair
    a.send(1, Kind.EXCHANGE, b"h", [torch.ones(10, device=devices[0])])
    assert b.receive(30) is not None
    b.close()
    while not a.broken(1):
        a.send(1, Kind.EXCHANGE, b"h", [torch.ones(10, device=devices[0])])
