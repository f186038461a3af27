"""The tree keeps to docs/architecture.md: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "coordinator": (
        "torch",
        "numpy",
        "workers",
        "washp2p.plan.plan",
        "washp2p.model.store",
        "washp2p.member.member",
    ),
    "workers": ("coordinator",),
    "washp2p": ("coordinator",),
    "washp2p/plan/plan.py": ("torch", "zmq", "time", "washp2p.model.store", "washp2p.transports"),
    "washp2p/plan/selection.py": ("torch", "zmq", "time", "washp2p.plan.plan"),
    "washp2p/plan/permutations.py": ("torch", "zmq", "time", "washp2p"),
    "washp2p/plan/philox.py": ("torch", "zmq", "time", "washp2p"),
    "washp2p/rounds/inbound.py": (
        "torch",
        "numpy",
        "zmq",
        "time",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/rounds/merging.py": ("zmq", "washp2p.transports", "time"),
    "washp2p/model/device_copies.py": ("zmq", "washp2p.transports", "washp2p.plan.plan"),
    "washp2p/protocol/rates.py": ("torch", "numpy"),
    "washp2p/protocol/roster.py": ("torch", "numpy"),
    "washp2p/protocol/layout.py": ("torch", "numpy"),
    "washp2p/protocol/seed_window.py": ("torch", "numpy", "zmq", "time"),
    "washp2p/protocol/control.py": ("torch", "numpy", "zmq"),
    "washp2p/protocol/frames.py": ("torch", "numpy", "zmq"),
    "washp2p/model/store.py": ("zmq", "washp2p.plan.plan", "washp2p.transports"),
    "washp2p/model/flat_memory.py": (
        "zmq",
        "time",
        "washp2p.plan.plan",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/model/buffers.py": (
        "zmq",
        "time",
        "washp2p.plan.plan",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/model/state_dict.py": (
        "zmq",
        "time",
        "washp2p.plan.plan",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/model/optimizers.py": ("zmq", "time", "washp2p.plan.plan", "washp2p.transports"),
    "washp2p/model/digests.py": (
        "zmq",
        "time",
        "washp2p.plan.plan",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/rounds/twins.py": (
        "torch",
        "zmq",
        "time",
        "washp2p.transports",
        "washp2p.model.store",
    ),
    "washp2p/model/missed_steps.py": (
        "zmq",
        "washp2p.transports",
        "washp2p.model.store",
        "washp2p.coordinator_link.connection",
    ),
    "washp2p/strategies": ("zmq", "washp2p.transports", "washp2p.rounds.exchange"),
    "washp2p/transports": (
        "numpy",
        "washp2p.plan.plan",
        "washp2p.strategies",
        "washp2p.model.store",
    ),
    "washp2p/transports/base.py": ("torch", "zmq"),
    "washp2p/transports/backlog.py": ("torch", "zmq"),
    "washp2p/transports/memory.py": ("torch", "zmq"),
    "washp2p/transports/zeromq.py": ("torch",),
    "washp2p/transports/pair.py": ("zmq", "washp2p.transports"),
    "workers/simulation/reference.py": ("washp2p",),
    "coordinator/machine/membership.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/machine/population.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/machine/plausibility.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/machine/complaints.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/machine/admission.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/machine/observation.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/watch/history.py": ("zmq", "time", "asyncio", "rich", "washp2p"),
    "washp2p/runfolder/logs.py": ("torch", "numpy", "zmq"),
    "washp2p/reporting/httpd.py": ("torch", "numpy", "zmq"),
    "washp2p/runfolder/finished.py": ("torch", "numpy", "zmq"),
    "washp2p/reporting/report.py": ("torch", "numpy", "zmq"),
    "washp2p/reporting/figures.py": ("torch", "zmq"),
}


def imports(path):
    """Modules that a file imports when it runs; those for type checkers do not count."""
    names = []
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("where", FORBIDDEN)
def test_imports(where):
    place = ROOT / where
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            wrong = [bad for bad in FORBIDDEN[where] if name == bad or name.startswith(f"{bad}.")]
            assert not wrong, f"{file.relative_to(ROOT)} imports {name}"


def test_nothing_unpickles():
    for package in ("washp2p", "coordinator", "workers"):
        for file in (ROOT / package).rglob("*.py"):
            wrong = {"pickle", "cPickle", "dill", "shelve", "marshal"} & set(imports(file))
            assert not wrong, file
            loads = file.read_text().count("torch.load(")
            assert loads == file.read_text().count("weights_only=True"), file
            assert not loads or file.name == "pretrained.py"  # tensors of others, which are no code
