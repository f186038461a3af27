"""Every block of Python in the guides runs, on all members of a population, as it stands there."""

from __future__ import annotations

import re

import pytest

from tests.support.processes import FORKSERVER, collect
from tests.support.sources import ROOT

PAGES = ("README.md", "docs/integrate.md", "docs/reliability.md", "docs/observe.md")
ADDRESS = "tcp://127.0.0.1:5555"
METRICS = "127.0.0.1:9100"


def blocks():
    for page in PAGES:
        text = (ROOT / page).read_text()
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
            yield pytest.param(code, id=f"{page}-{number}")


def run_block(code, address, number, folder, queue):
    import torch
    import torch.distributed as dist

    import washp2p

    torch.set_num_threads(1)
    torch.manual_seed(number)
    if "DistributedDataParallel" in code:
        store = dist.FileStore(str(folder / f"group-{number}"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    )
    pairs = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randint(3, (64,)))
    names = {
        "torch": torch,
        "washp2p": washp2p,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": torch.utils.data.DataLoader(pairs, 8, shuffle=True),
        "loss_of": torch.nn.functional.cross_entropy,
        "rounds": 8,
        "validate": lambda model: model(torch.zeros(2, 6)),
        "path": folder / f"averaged-{number}.pt",
    }
    code = code.replace(ADDRESS, address).replace(METRICS, "127.0.0.1:0")
    exec(compile(code, "a guide", "exec"), names)
    if not names["member"].closed:
        names["member"].close()
    averaged = names.get("averaged")
    queue.put((number, averaged is None or len(averaged)))


@pytest.mark.parametrize("code", list(blocks()))
def test_a_guides_code_runs(runs, tmp_path, code):
    assert ADDRESS in code
    coordinator = runs.coordinator("--n=2", "--p=0.1")
    arguments = [(code, coordinator.address, number, tmp_path) for number in range(2)]
    found = dict(collect(run_block, arguments))
    assert coordinator.wait() == 0, coordinator.text
    assert found[0] == found[1]
    assert found[0] in {True, 9}


def test_there_is_something_to_run():
    assert len(list(blocks())) >= 11
    assert FORKSERVER.get_start_method() == "forkserver"
