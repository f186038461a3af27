"""The tree keeps to docs/architecture.md: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "coordinator": ("torch", "numpy", "workers", "washp2p.plan", "washp2p.store", "washp2p.member"),
    "workers": ("coordinator",),
    "washp2p": ("coordinator",),
    "washp2p/plan.py": ("torch", "zmq", "time", "washp2p.store", "washp2p.transports"),
    "washp2p/selection.py": ("torch", "zmq", "time", "washp2p.plan"),
    "washp2p/permutations.py": ("torch", "zmq", "time", "washp2p"),
    "washp2p/words.py": ("torch", "zmq", "time", "washp2p"),
    "washp2p/arrivals.py": ("torch", "numpy", "zmq", "time", "washp2p.transports", "washp2p.store"),
    "washp2p/merging.py": ("zmq", "washp2p.transports", "time"),
    "washp2p/lanes.py": ("zmq", "washp2p.transports", "washp2p.plan"),
    "washp2p/rates.py": ("torch", "numpy"),
    "washp2p/rounds.py": ("torch", "numpy"),
    "washp2p/layout.py": ("torch", "numpy"),
    "washp2p/seedbook.py": ("torch", "numpy", "zmq", "time"),
    "washp2p/control.py": ("torch", "numpy", "zmq"),
    "washp2p/frames.py": ("torch", "numpy", "zmq"),
    "washp2p/store.py": ("zmq", "washp2p.plan", "washp2p.transports"),
    "washp2p/memory.py": ("zmq", "time", "washp2p.plan", "washp2p.transports", "washp2p.store"),
    "washp2p/buffers.py": ("zmq", "time", "washp2p.plan", "washp2p.transports", "washp2p.store"),
    "washp2p/statedict.py": ("zmq", "time", "washp2p.plan", "washp2p.transports", "washp2p.store"),
    "washp2p/optimizers.py": ("zmq", "time", "washp2p.plan", "washp2p.transports"),
    "washp2p/digests.py": ("zmq", "time", "washp2p.plan", "washp2p.transports", "washp2p.store"),
    "washp2p/likeness.py": ("torch", "zmq", "time", "washp2p.transports", "washp2p.store"),
    "washp2p/watch.py": ("zmq", "washp2p.transports", "washp2p.store", "washp2p.connection"),
    "washp2p/strategies": ("zmq", "washp2p.transports", "washp2p.exchange"),
    "washp2p/transports": ("numpy", "washp2p.plan", "washp2p.strategies", "washp2p.store"),
    "washp2p/transports/base.py": ("torch", "zmq"),
    "washp2p/transports/backlog.py": ("torch", "zmq"),
    "washp2p/transports/memory.py": ("torch", "zmq"),
    "washp2p/transports/zeromq.py": ("torch",),
    "washp2p/transports/pair.py": ("zmq", "washp2p.transports"),
    "washp2p/reference.py": ("washp2p",),
    "coordinator/membership.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/population.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/plausibility.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/votes.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/lobby.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/observation.py": ("zmq", "time", "asyncio", "rich"),
    "coordinator/history.py": ("zmq", "time", "asyncio", "rich", "washp2p"),
    "washp2p/logs.py": ("torch", "numpy", "zmq"),
    "washp2p/httpd.py": ("torch", "numpy", "zmq"),
    "washp2p/finished.py": ("torch", "numpy", "zmq"),
    "washp2p/report.py": ("torch", "numpy", "zmq"),
    "washp2p/figures.py": ("torch", "zmq"),
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
