"""The tree keeps to its layers, which docs/architecture.md draws."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("washp2p", "coordinator", "workers")

LAYERS = {
    "washp2p.errors": [],
    "washp2p.protocol": ["washp2p.errors"],
    "washp2p.protocol.messages": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.plan": ["washp2p.protocol", "washp2p.protocol.messages"],
    "washp2p.model": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.evaluation": ["washp2p.errors", "washp2p.model"],
    "washp2p.config": ["washp2p.errors", "washp2p.protocol"],
    "washp2p.sockets": ["washp2p.errors", "washp2p.protocol", "washp2p.protocol.messages"],
    "washp2p.transports": ["washp2p.errors", "washp2p.protocol", "washp2p.sockets"],
    "washp2p.strategies": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model", "washp2p.config",
    ],
    "washp2p.runfolder": ["washp2p.errors", "washp2p.protocol", "washp2p.config"],
    "washp2p.commandline": ["washp2p.errors", "washp2p.runfolder"],
    "washp2p.reporting": ["washp2p.errors", "washp2p.protocol", "washp2p.runfolder"],
    "washp2p.rounds": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model",
        "washp2p.evaluation", "washp2p.transports", "washp2p.runfolder",
    ],
    "washp2p.coordinator_link": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.transports", "washp2p.runfolder",
    ],
    "washp2p.member": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model", "washp2p.config",
        "washp2p.sockets", "washp2p.transports", "washp2p.strategies", "washp2p.runfolder",
        "washp2p.rounds", "washp2p.coordinator_link",
    ],
    "washp2p.metrics": [
        "washp2p.errors", "washp2p.protocol", "washp2p.reporting", "washp2p.member",
    ],
    "washp2p": ["washp2p.protocol", "washp2p.config", "washp2p.coordinator_link", "washp2p.member"],
    "workers": [],
    "workers.options": [],
    "workers.launched": ["washp2p.errors"],
    "workers.training": [
        "washp2p.errors", "washp2p.config", "washp2p.evaluation", "washp2p.runfolder", "washp2p",
    ],
    "workers.simulation": [
        "washp2p.errors", "washp2p.protocol", "washp2p.plan", "washp2p.model",
        "washp2p.evaluation", "washp2p.config", "washp2p.strategies", "washp2p.runfolder",
        "workers.training",
    ],
    "workers.__main__": [
        "washp2p.errors", "washp2p.runfolder", "washp2p.commandline", "washp2p.metrics",
        "washp2p", "workers.options", "workers.launched", "workers.training",
    ],
    "workers.studies": [
        "washp2p.errors", "washp2p.protocol", "washp2p.evaluation", "washp2p.config",
        "washp2p.runfolder", "washp2p.reporting", "workers.training", "workers.__main__",
    ],
    "washp2p.cli": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "washp2p.commandline", "washp2p.reporting", "workers.options",
        "workers.training", "workers.simulation", "workers.__main__", "workers.studies",
    ],
    "washp2p.__main__": ["washp2p.cli"],
    "coordinator": [],
    "coordinator.machine": ["washp2p.errors", "washp2p.protocol", "washp2p.config"],
    "coordinator.watch": [
        "washp2p.errors", "washp2p.protocol", "washp2p.runfolder", "washp2p.reporting",
        "coordinator.machine",
    ],
    "coordinator.service": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "coordinator.machine", "coordinator.watch",
    ],
    "coordinator.__main__": [
        "washp2p.errors", "washp2p.protocol", "washp2p.config", "washp2p.sockets",
        "washp2p.runfolder", "washp2p.commandline", "coordinator.watch", "coordinator.service",
    ],
}  # fmt: skip
"""What each package, or module beside packages, may import; it stands below. A package that may
import `washp2p.protocol` may import its messages."""

SOCKETS = {"socket", "zmq", "asyncio", "selectors", "http"}
CLOCKS = {"time", "sched"}
DISK = {"sqlite3", "shutil", "tempfile", "pathlib", "os"}
TENSORS = {"torch", "torchvision", "safetensors"}
ARRAYS = {"numpy", "scipy", "sklearn"}
PURE = {
    "washp2p.protocol": SOCKETS | CLOCKS | DISK | TENSORS | ARRAYS,
    "washp2p.plan": SOCKETS | CLOCKS | DISK | TENSORS,
    "washp2p.config": SOCKETS | CLOCKS | TENSORS | ARRAYS,
    "washp2p.model": SOCKETS | CLOCKS,
    "washp2p.evaluation": SOCKETS | CLOCKS,
    "washp2p.strategies": SOCKETS | CLOCKS,
    "washp2p.transports.base": SOCKETS | CLOCKS | TENSORS | ARRAYS,
    "washp2p.transports.memory": SOCKETS | TENSORS | ARRAYS,
    "washp2p.sockets": TENSORS | ARRAYS,
    "washp2p.runfolder": SOCKETS | TENSORS | ARRAYS,
    "washp2p.reporting": TENSORS,
    "washp2p.cli.main": TENSORS | ARRAYS,
    "washp2p.rounds.inbound": SOCKETS | CLOCKS | TENSORS | ARRAYS,
    "washp2p.rounds.merging": SOCKETS | CLOCKS,
    "coordinator": TENSORS,
    "coordinator.machine": SOCKETS | CLOCKS | DISK | TENSORS | ARRAYS | {"rich"},
    "coordinator.service": TENSORS | ARRAYS,
}
"""What must not be imported by these, nor by anything that they import."""

LINES, MODULES = 350, 14
ORACLE = "workers.simulation.reference"


@cache
def modules():
    """The file of each module of the project."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path, *, for_types=False, lazy=True):
    """Modules that a file imports: when it runs, and those `for_types` only.

    Without `lazy`, imports within functions do not count.
    """
    names = []
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if types and not for_types:
            node.body.clear()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def layer(module):
    """The key of LAYERS that a module belongs to; None if it has none."""
    return next((part for part in (module, module.rpartition(".")[0]) if part in LAYERS), None)


def own_imports(module):
    """Modules of the project that a module imports, those for types included."""
    path = modules()[module]
    names = [name for name in imports(path, for_types=True) if name in modules()]
    if path.stem == "__init__":
        return [name for name in names if name != module]
    # `from package import module` names both; the package itself is an import only if alone
    return [n for n in names if not any(other.startswith(f"{n}.") for other in names)]


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_layers_below(module):
    mine = layer(module)
    assert mine is not None, f"{module} lies in a folder that is in no layer; add it to LAYERS"
    for name in own_imports(module):
        theirs = layer(name)
        allowed = {mine, *LAYERS[mine]}
        allowed |= {"washp2p.protocol.messages"} if "washp2p.protocol" in allowed else set()
        assert theirs in allowed, f"{module} imports {name}; {mine} may import {LAYERS[mine]}"


def test_layers_stand_on_layers_below():
    """So no layer reaches, by whatever way, one that stands above it."""
    for at, (name, below) in enumerate(LAYERS.items()):
        assert set(below) <= set(list(LAYERS)[:at]), name


def test_no_module_imports_itself_by_way_of_others():
    done, path = set(), []

    def visit(module):
        assert module not in path, [*path[path.index(module) :], module]
        if module not in done:
            path.append(module)
            for name in own_imports(module):
                visit(name)
            done.add(path.pop())

    sys.setrecursionlimit(10_000)
    for module in modules():
        visit(module)


@pytest.mark.parametrize("where", PURE)
def test_what_must_not_be_reached(where):
    """By any way: imports of imports count, those within functions of other programs do not."""
    reached, todo = {}, {m: (m,) for m in modules() if m == where or m.startswith(f"{where}.")}
    assert todo
    while todo:
        module, way = todo.popitem()
        reached[module] = way
        packages = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        for name in [*packages, *imports(modules()[module], lazy=where not in LAZY)]:
            assert name.partition(".")[0] not in PURE[where], f"{' -> '.join(way)} -> {name}"
            if name in modules() and name not in reached:
                todo[name] = (*way, name)


LAZY = {"coordinator", "coordinator.service", "washp2p.cli.main", "washp2p.reporting"}
"""Where a heavy import may stand in a function, which is called only where it is needed."""


def test_files_and_folders_stay_small():
    for module, path in modules().items():
        lines = len(path.read_text().splitlines())
        assert module == ORACLE or lines <= LINES, f"{module} has {lines} lines"
        beside = len(list(path.parent.glob("*.py")))
        assert beside <= MODULES, f"{path.parent.relative_to(ROOT)} has {beside} modules"


def test_every_public_method_says_what_it_is_for():
    """By its own docstring, or by that of the method that it overrides."""
    for module in modules():
        if not module.endswith("__main__"):
            for name, kind in vars(import_module(module)).items():
                if inspect.isclass(kind) and kind.__module__ == module and name[0] != "_":
                    for key, value in vars(kind).items():
                        named = inspect.isfunction(value) and value.__name__ == key
                        if named and key[0] != "_":
                            text = inspect.getdoc(getattr(kind, key))
                            assert text, f"{module}.{name}.{key}"
                            assert not re.match(r"See [A-Z`]", text), f"{module}.{name}.{key}"


def test_nothing_unpickles():
    for path in modules().values():
        wrong = {"pickle", "cPickle", "dill", "shelve", "marshal"} & set(imports(path))
        assert not wrong, path
        loads = path.read_text().count("torch.load(")
        assert loads == path.read_text().count("weights_only=True"), path
        assert not loads or path.name == "pretrained.py"  # tensors of others, which are no code
