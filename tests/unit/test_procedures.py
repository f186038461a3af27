"""A procedure that is called and not run does nothing, silently: the tree has no such call."""

from __future__ import annotations

import ast

import pytest

from tests.support.sources import modules

CORE = [name for name in modules() if name.startswith(("washp2p.rounds.", "washp2p.member."))]


def functions(module):
    tree = ast.parse(modules()[module].read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def is_procedure(function):
    return function.returns is not None and ast.unparse(function.returns).startswith("Procedure[")


EVERY = [
    function
    for module in modules()
    if module.startswith("washp2p.")
    for function in functions(module)
]
PROCEDURES = {f.name for f in EVERY if is_procedure(f)} - {
    f.name for f in EVERY if not is_procedure(f)
}


def test_there_are_procedures():
    assert {"wait_until", "wait_for", "come_in", "start_together", "_trade", "_save"} <= PROCEDURES


@pytest.mark.parametrize("module", CORE)
def test_a_procedure_is_called_only_to_be_run(module):
    for function in functions(module):
        run = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.YieldFrom)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                called = node.func
                name = getattr(called, "attr", getattr(called, "id", ""))
                builtin = isinstance(called, ast.Name) and name == "round"
                if name in PROCEDURES and not builtin:
                    assert id(node) in run, (
                        f"{module}:{node.lineno} calls {name} without yield from"
                    )
