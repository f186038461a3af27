"""The project's source files, and what they import."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("washp2p", "coordinator", "workers")


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
