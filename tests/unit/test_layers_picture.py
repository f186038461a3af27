"""The picture in docs/architecture.md is made from the list of layers."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location

from tests.support.layers import LAYERS
from tests.support.sources import ROOT


def test_the_picture_is_of_the_layers():
    spec = spec_from_file_location("layers", ROOT / "docs" / "layers.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.layers() == LAYERS
    assert (ROOT / "docs" / "layers.svg").read_text() == module.picture()


def test_every_file_that_the_map_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:washp2p|coordinator|workers|tests|docs)/[\w./]+)`", page)
    assert len(named) > 40
    for name in named:
        assert (ROOT / name).exists(), name
