"""The folders of a study's runs: another version must find them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from washp2p.config.config import RunConfig
from workers.studies.cells import Cells


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"n": 3}, "digits-n3-wash-fd2eda4de7b5dc1c"),
        (
            {"n": 5, "data": "cifar100", "method": "papa-all"},
            "cifar100-n5-papa-all-12ad39942d9d901f",
        ),
        (
            {"n": 2, "method": "dart", "optimizer": "adamw", "seed": 3},
            "digits-n2-dart-975078da27c3362e",
        ),
    ],
)
def test_a_configuration_has_the_folder_that_it_always_had(given, name):
    cells = Cells(Path("studies"), Path("data"), download=False)
    assert cells.place(RunConfig.resolve(**given)) == Path("studies") / name
