"""What mkdocs needs beside the pages in this folder: `mkdocs build --strict` calls these hooks.

The README is the first page. Other Markdown files of the repository, and files that pages link to,
come along. Links say where a file lies in the repository; here they become links of the site. The
reference of command lines is made from the programs' own parsers.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs runs this file by itself

import coordinator.__main__  # noqa: E402 - found by the path above
import washp2p.cli.main  # noqa: E402 - the same
import workers.__main__  # noqa: E402 - the same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

CLI = "reference/cli.md"
ALONG = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "LICENSE",
    "deploy/**/*.md",
    "examples/*.py",
    "benchmarks/results/*.md",
)
"""Files outside this folder that are part of the site, as patterns from the repository's root."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def site_path(repository_path: str) -> str:
    """Where the site has a file of the repository.

    >>> site_path("README.md"), site_path("docs/methods.md"), site_path("deploy/README.md")
    ('index.md', 'methods.md', 'deploy/README.md')
    """
    return "index.md" if repository_path == "README.md" else repository_path.removeprefix("docs/")


def repository_path(site_path: str) -> str:
    """Inverse of `site_path`."""
    if site_path == "index.md":
        return "README.md"
    return f"docs/{site_path}" if (ROOT / "docs" / site_path).exists() else site_path


def with_links_of_the_site(markdown: str, repository_path: str) -> str:
    """A page's text with its links to files of the repository made links of the site."""
    here, there = posixpath.dirname(repository_path), posixpath.dirname(site_path(repository_path))

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, found[1]))
        if (ROOT / target / "README.md").exists():
            target = posixpath.join(target, "README.md")
        return posixpath.relpath(site_path(target), there or ".") + (found[2] or "")

    return LINK.sub(link, markdown)


def on_files(files: Files, config: Any) -> Files:
    """Add the files that come along, and the reference of command lines."""
    for pattern in ALONG:
        for path in sorted(ROOT.glob(pattern)):
            name = site_path(str(path.relative_to(ROOT)))
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, CLI, content=command_lines()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Mend the links of a page."""
    if page.file.src_uri == CLI:
        return markdown
    return with_links_of_the_site(markdown, repository_path(page.file.src_uri))


def command_lines() -> str:
    """The reference of command lines, as Markdown."""
    commands = washp2p.cli.main.parser()
    (chosen,) = (a for a in commands._actions if isinstance(a, argparse._SubParsersAction))
    parsers = [*chosen.choices.values(), coordinator.__main__.parser(), workers.__main__.parser()]
    about = {action.dest: action.help or "" for action in chosen._choices_actions}
    lines = [
        "# Command line",
        "",
        "Made from the programs' own parsers. `--help` prints the same.",
    ]
    for parser in parsers:
        description = parser.description or about.get(parser.prog.split()[-1], "")
        lines += ["", f"## {parser.prog}", "", _sentence(description), *_options_of(parser)]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    text = text.partition(": ")[2] if text.startswith("`") else text
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for group in parser._action_groups:
        actions = [
            a
            for a in group._group_actions
            if a not in nested and not isinstance(a, argparse._HelpAction)
        ]
        if actions:
            yield from ("", f"**{(group.title or '').capitalize()}**", "", "| | |", "|---|---|")
        for action in actions:
            names = ", ".join(action.option_strings) or action.dest
            value = "" if action.nargs == 0 else _value_of(action)
            text = (action.help or "") % {**vars(action), "prog": parser.prog}
            yield f"| `{names}{value}` | {text.replace('|', chr(92) + '|')} |"
    for choice in nested:
        about = {action.dest: action.help for action in choice._choices_actions}
        yield from ("", "| | |", "|---|---|")
        yield from (f"| `{name}` | {about.get(name)} |" for name in choice.choices)


def _value_of(action: argparse.Action) -> str:
    if not action.option_strings:
        return f" {action.metavar}" if action.metavar and action.metavar != action.dest else ""
    value = action.metavar or action.dest.upper()
    return f" [{value}]" if action.nargs == "?" else f" {value}"
