"""Key files: made for their owner alone, refused when others can use them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from washp2p.cli.main import main
from washp2p.errors import UsageError
from washp2p.sockets import keys


def test_both_files_belong_together_and_to_their_owner_alone(tmp_path):
    folder = tmp_path / "new" / "keys"
    before = os.umask(0)
    try:
        keys.make(folder)
    finally:
        os.umask(before)
    coordinator, join = keys.read_coordinator(folder), keys.read_join(folder / keys.JOIN)
    assert coordinator.own.public == join.coordinator
    assert coordinator.join == join.own.public
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in folder.iterdir()} == {"coordinator.key", "join.key"}


def test_a_secret_key_is_not_shown_by_accident():
    pair = keys.KeyPair.fresh()
    assert pair.secret.hex() not in repr(pair)
    assert repr(pair.secret) not in repr(keys.JoinKey(pair, b""))


def test_rotating_replaces_both_and_init_neither(tmp_path):
    keys.make(tmp_path)
    first = keys.read_join(tmp_path)
    with pytest.raises(UsageError, match="exists; use it, or make new keys: washp2p keys rotate"):
        keys.make(tmp_path)
    keys.make(tmp_path, anew=True)
    second = keys.read_join(tmp_path)
    assert first.own != second.own
    assert first.coordinator != second.coordinator
    with pytest.raises(UsageError, match="holds no keys; make some: washp2p keys init"):
        keys.make(tmp_path / "empty", anew=True)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_can_use_is_refused(tmp_path, mode):
    keys.make(tmp_path)
    for read, name in ((keys.read_join, keys.JOIN), (keys.read_coordinator, keys.COORDINATOR)):
        (tmp_path / name).chmod(mode)
        with pytest.raises(UsageError, match=f"has mode {mode:04o}.*chmod 600 .*{name}"):
            read(tmp_path)
        (tmp_path / name).chmod(0o400)
        read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"secret": 1}', '{"secret": "x", "coordinator": "y"}', "\xff", "null"]
)
def test_what_is_no_key_file_is_named(tmp_path, text):
    path = tmp_path / keys.JOIN
    path.touch(0o600)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"join\.key"):
        keys.read_join(tmp_path)


def test_the_command_shows_what_is_to_go_where_and_nothing_secret(tmp_path, capsys):
    assert main(["keys", "init", str(tmp_path / "k")]) == 0
    assert main(["keys", "show", str(tmp_path / "k")]) == 0
    shown = capsys.readouterr().out
    pair = keys.read_coordinator(tmp_path / "k").own
    assert shown.count(pair.public.hex()) == 2
    assert pair.secret.hex() not in shown
    assert "to every host with workers" in shown
    assert main(["keys", "rotate", str(tmp_path / "k")]) == 0
    assert pair.public.hex() not in capsys.readouterr().out


def test_files_that_do_not_belong_together_are_told_apart(tmp_path, capsys):
    for name in "ab":
        keys.make(tmp_path / name)
    (tmp_path / "a" / keys.JOIN).replace(tmp_path / "b" / keys.JOIN)
    with pytest.raises(SystemExit):
        main(["keys", "show", str(tmp_path / "b")])
    assert "do not belong together" in capsys.readouterr().err


def test_making_keys_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None, safetensors=None)\n"
        f"from washp2p.cli.main import main; main(['keys', 'init', {str(tmp_path / 'k')!r}])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
