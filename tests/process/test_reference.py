"""The API reference, as docs/api/README.md makes it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

from tests.unit.test_api import PUBLIC
from tests.unit.test_architecture import ROOT


def test_the_reference_is_made_of_the_docstrings(tmp_path):
    """By the command that docs/api/README.md gives."""
    command = [sys.executable, "docs/api/build.py", str(tmp_path)]
    made = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    for module in PUBLIC:
        page = (tmp_path / f"{module.replace('.', '/')}.html").read_text()
        for name in getattr(import_module(module), "__all__", ()):
            assert f'id="{name}"' in page, f"{module}.{name}"
    assert not (tmp_path / "washp2p" / "exchange.html").exists()
