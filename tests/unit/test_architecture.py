"""The tree keeps to its layers, which docs/architecture.md draws."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module

import pytest

from tests.support.layers import LAYERS
from tests.support.sources import ROOT, imports, modules

SOCKETS = {"socket", "zmq", "asyncio", "selectors", "http"}
CLOCKS = {"time", "sched"}
THREADS = {"concurrent", "multiprocessing", "subprocess"}
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
    "washp2p.rounds": SOCKETS | CLOCKS | THREADS,
    "washp2p.member": SOCKETS | CLOCKS | THREADS,
    "washp2p.rounds.arrivals": SOCKETS | CLOCKS | TENSORS | ARRAYS,
    "coordinator": TENSORS,
    "coordinator.machine": SOCKETS | CLOCKS | DISK | TENSORS | ARRAYS | {"rich"},
    "coordinator.service": TENSORS | ARRAYS,
}
"""What must not be imported by these, nor by anything that they import."""

LINES, MODULES = 350, 14
ORACLE = "workers.simulation.reference"


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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.stem)
def test_what_tests_share_lies_in_support(path):
    theirs = {name.split(".")[1] for name in imports(path) if name.startswith("tests.")}
    assert theirs <= {"support", "simulation"}
