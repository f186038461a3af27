"""Run folders: nobody shares one, and what is damaged is named in one line."""

from __future__ import annotations

import json

import pytest

from tests.support.disk import files_no_larger_than
from washp2p.config.config import RunConfig
from washp2p.errors import UsageError
from washp2p.runfolder import rundir


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"config": 3}', '{"config": {}}', '{"config": {"n": "x"}}', "\\udc80"],
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=f"cannot read {tmp_path}/config.json: .*undamaged") as no:
        rundir.read_config(tmp_path)
    assert "\n" not in str(no.value)


def test_any_key_that_is_missing_or_of_another_kind_is_named(tmp_path):
    whole = RunConfig.resolve(n=2).to_wire()
    for name in whole:
        for config in (
            {key: value for key, value in whole.items() if key != name},
            whole | {name: [1]},
        ):
            (tmp_path / "config.json").write_text(json.dumps({"config": config}))
            if name in {"last", "on_bad_image", "block"} and name not in config:
                continue
            with pytest.raises(UsageError, match=r"config\.json"):
                rundir.read_config(tmp_path)


def test_what_is_reserved_is_there_when_the_disk_is_full(tmp_path):
    path = tmp_path / "summary.json"
    rundir.reserve(path, 500)
    assert not path.exists()
    rundir.write_reserved(path, {"a": "b" * 100})
    assert json.loads(path.read_text()) == {"a": "b" * 100}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    rundir.write_reserved(path, {"a": 1})  # without
    assert json.loads(path.read_text()) == {"a": 1}
    with files_no_larger_than(100), pytest.raises(UsageError, match="make room"):
        rundir.reserve(path, 500)


def test_a_summary_of_an_earlier_version_is_read(tmp_path):
    """It calls rosters epochs."""
    text = {"accuracy": {}, "bytes": [], "rounds": 3, "parameters": 4}
    text["epochs"] = [{"epoch": 1, "first_round": 2, "members": [0, 2]}]
    (tmp_path / "summary.json").write_text(json.dumps(text))
    summary = rundir.read_summary(tmp_path)
    assert summary["rosters"] == [{"generation": 1, "first_round": 2, "members": [0, 2]}]
    assert "epochs" not in summary
