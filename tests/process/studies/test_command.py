"""What `washp2p study` is asked for: refused before anything is trained, or told in the page."""

from __future__ import annotations

import subprocess
import sys

import pytest


def study(folder, *arguments):
    command = [sys.executable, "-m", "washp2p", "study", *arguments, f"--runs={folder / 'runs'}"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=100, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zoo"], "NAME is 'zoo'; expected one of toy, volume"),
        (["volume", "--preset=big"], "--preset is 'big'; expected one of cpu, gpu, paper"),
        (["volume", "--seeds=0,0"], "--seeds is '0,0'; expected different numbers"),
        (["volume", "--seeds="], "--seeds is ''; expected different numbers"),
        (["volume", "--simulate"], "--simulate means nothing to the study volume"),
        (["toy", "--n=3"], "--n means nothing to the study toy"),
        (["toy", "--seeds=1"], "--seeds means nothing to the study toy"),
        (["window", "--weights=x"], "--weights means nothing to the study window"),
        (["volume", "--into=/proc/tables"], "--into is /proc/tables: No such file or directory"),
        (["volume", "--data=digits", "--n=1"], "--n is 1; expected 2"),
    ],
)
def test_bad_flags_get_one_line_and_nothing_is_made(tmp_path, arguments, words):
    done = study(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_page_says_the_command_that_makes_it(tmp_path):
    assert study(tmp_path, "toy").returncode == 0
    page = (tmp_path / "studies" / "toy.md").read_text()
    assert "Command: `washp2p study toy`" in page
    assert (tmp_path / "studies" / "toy.csv").exists()
    assert (tmp_path / "studies" / "toy.png").exists()
