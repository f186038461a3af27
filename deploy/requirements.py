"""Print requirements for `pip install -r`: `requirements.py [--only A,B] [EXTRA ...]`.

This project's, of pyproject.toml in the working directory; so an image's dependencies are a layer
of their own, which a change of the sources leaves alone.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="of the dependencies these, comma-separated")
    parser.add_argument("extras", nargs="*", help="optional dependencies as well")
    options = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = set(filter(None, options.only.split(",")))
    names = {re.split(r"[^\w.-]", each)[0]: each for each in project["dependencies"]}
    if unknown := wanted - names.keys():
        parser.error(f"--only {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    chosen = [each for name, each in names.items() if not wanted or name in wanted]
    for extra in options.extras:
        chosen += project["optional-dependencies"][extra]
    print(*chosen, sep="\n")


if __name__ == "__main__":
    main()
