"""The public API: every name says what it takes, in what units, and what it raises; it is enough.

Public is what `__all__` of PUBLIC's modules has, or all of a module that has none.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import sys
import textwrap
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.support.sources import ROOT, imports

if TYPE_CHECKING:
    import torch

PUBLIC = ("washp2p", "washp2p.evaluation", "washp2p.errors", "washp2p.metrics")
TRAINER = (
    "launched", "training/trainer", "training/evaluate", "training/data", "training/models",
    "training/pretrained", "training/streams", "training/model_files",
)  # fmt: skip
COMMAND = ("washp2p.commandline", "washp2p.runfolder.process_log", "washp2p.runfolder.rundir")
"""What the commands of the project share: flags, and the names of files in a run folder."""

UNITS = r"second|rounds|steps|per cent|per mille|bytes|number|share|accura"
SHAPES = r"tensor|vector|state dict|dtype|samples x|parameters|model"


def public():
    """Every public class and function, with its name."""
    for module in map(import_module, PUBLIC):
        names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value


def callables():
    """Every public function, method and property, with its name and its class."""
    for name, value in public():
        if inspect.isfunction(value):
            yield name, value, None
            continue
        for key, member in vars(value).items():
            function = getattr(member, "fget", getattr(member, "func", member))
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not key.startswith("_"):
                yield f"{name}.{key}", function, value


def words_of(function, owner):
    """What a reader finds: its docstring, and that of its class."""
    return f"{function.__doc__ or ''} {owner.__doc__ if owner else ''}"


def raises(function, owner):
    """Whether it raises, or calls something of its class or module that is said to."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    if any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree)):
        return True
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for call in called:
        if isinstance(call, ast.Attribute) and getattr(call.value, "id", "") == "self":
            target = getattr(owner, call.attr, None)
        elif isinstance(call, ast.Name):
            target = sys.modules[function.__module__].__dict__.get(call.id)
        else:
            continue
        if inspect.isroutine(target) and re.search(r"\bRaises\b", target.__doc__ or ""):
            return True
    return False


def lacks(function, owner):
    """What its docstring ought to say and does not."""
    doc = words_of(function, owner)
    signature = inspect.signature(function)
    if not function.__doc__:
        yield "a docstring"
    for name in signature.parameters:
        if name not in {"self", "cls"} and not re.search(rf"`[^`]*\b{name}\b[^`]*`", doc):
            yield f"what `{name}` is"
    hints = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
    for kinds, words, what in (
        (r"\b(float|int)\b", UNITS, "units"),
        (r"Tensor|State\b|ndarray|Sections", SHAPES, "shapes or dtypes"),
    ):
        if any(re.search(kinds, str(hint)) for hint in hints) and not re.search(words, doc):
            yield what
    if raises(function, owner) and not re.search(r"\b[Rr]aise", doc):
        yield "what it raises"


@pytest.mark.parametrize(("name", "function", "owner"), list(callables()))
def test_every_public_name_says_what_it_is(name, function, owner):
    assert list(lacks(function, owner)) == []


@pytest.mark.parametrize(("name", "value"), list(public()))
def test_every_public_class_and_function_has_a_docstring(name, value):
    assert value.__doc__
    assert not value.__doc__.startswith(f"{value.__name__}("), "dataclass made it"


def test_the_check_finds_what_is_missing():
    def bad(seconds: float, vector: torch.Tensor) -> None:
        """Does it."""
        raise ValueError("no")

    def good(wait: float, vector: torch.Tensor) -> None:
        """Waits `wait` seconds, fills the tensor `vector`. Raises ValueError."""
        raise ValueError("no")

    missing = ["what `seconds` is", "what `vector` is", "units", "shapes or dtypes"]
    assert list(lacks(bad, None)) == [*missing, "what it raises"]
    assert list(lacks(good, None)) == []


@pytest.mark.parametrize("name", TRAINER)
def test_the_built_in_trainer_uses_the_public_api_only(name):
    path = ROOT / "workers" / f"{name}.py"
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for module in names:
            if module.partition(".")[0] == "washp2p":
                assert module in (*PUBLIC, *COMMAND), f"workers/{name}.py imports {module}"


def test_the_worker_joins_by_the_public_api_only():
    path = ROOT / "workers" / "__main__.py"
    ours = {name for name in imports(path) if name.startswith("washp2p")}
    allowed = re.compile(
        r"washp2p$|washp2p\.(errors|commandline|metrics|runfolder(\.(process_log|rundir))?)\b"
    )
    assert all(allowed.match(name) for name in ours), ours
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and getattr(node.value, "id", "") in {"washp2p", "member", "connection", "trainer"}
    }
    assert {"connect", "join", "average", "leads", "models"} <= used
    assert not [name for name in used if name.startswith("_")]


MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for package in ("washp2p", "coordinator", "workers")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__main__"
)


def test_examples_in_docstrings_work():
    """Those of everything that needs no coordinator."""
    tried = 0
    for name in MODULES:
        if name != "washp2p":
            failed, count = doctest.testmod(import_module(name))
            assert not failed, name
            tried += count
    assert tried >= 20
