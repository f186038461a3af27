"""The pages: what they name is there, and their command lines are what the programs take."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest

import coordinator.__main__
import washp2p.cli.main
import workers.__main__
from tests.support.sources import ROOT

PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md"))
    if "studies" not in path.parts
)
PARSERS = {
    "washp2p": washp2p.cli.main.parser,
    "coordinator": coordinator.__main__.parser,
    "workers": workers.__main__.parser,
}
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)")
FOLDERS = "tests|washp2p|coordinator|workers|benchmarks|deploy|docs|examples"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)(?:::(\w+))?`")


def name(path):
    return str(path.relative_to(ROOT))


def commands():
    """Each line of a page's shell blocks that runs one of the programs."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|console)?\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|;", line.partition(" #")[0]):
                    command = re.sub(r"^\s*(?:host\w\$ )?(?:\w+=\S* )*", "", part).strip()
                    if re.match(r"(\S*/)?(washp2p|python) ", command):
                        yield pytest.param(command, id=f"{name(page)}: {command}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), f"link to {target}"
    for path, test in FILE.findall(text):
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_line_is_one_that_the_program_takes(command):
    words = shlex.split(command)
    program, *arguments = [word.replace("PORT", "5555") for word in words]
    if program.endswith("python"):
        assert arguments[0] == "-m"
        program, *arguments = arguments[1:]
    parser = PARSERS.get(program.rpartition("/")[2])
    if parser is None:
        assert import_module(program).__doc__
    elif "..." not in arguments:
        parser().parse_args(arguments)
