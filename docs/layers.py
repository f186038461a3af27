"""Draws docs/layers.svg from the list of layers that the tests hold the tree to.

python docs/layers.py
"""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent
TEST = HERE.parent / "tests" / "support" / "layers.py"
WIDTH, HEIGHT, GAP, MARGIN = 152, 34, 14, 20
COLOURS = {"washp2p": "#dbeafe", "workers": "#dcfce7", "coordinator": "#fef3c7"}


def layers() -> dict[str, list[str]]:
    """What each package may import, as the test says."""
    for node in ast.parse(TEST.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LAYERS":
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{TEST} has no LAYERS")


def floors(below: dict[str, list[str]]) -> list[list[str]]:
    """The packages by floor, from the ground up: each stands above all that it may import."""
    floor: dict[str, int] = {}
    for name, under in below.items():  # a package comes after what it stands on
        floor[name] = 1 + max((floor[other] for other in under), default=-1)
    return [[n for n in below if floor[n] == level] for level in range(max(floor.values()) + 1)]


def picture() -> str:
    """The SVG."""
    rows = [
        [name for name in row if not name.endswith("__main__") and "." in name]
        for row in reversed(floors(layers()))
    ]
    rows = [row for row in rows if row]
    width = 2 * MARGIN + max(map(len, rows)) * (WIDTH + GAP) - GAP
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP) - GAP
    boxes = []
    for level, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + GAP) + GAP) // 2
        top = MARGIN + level * (HEIGHT + GAP)
        for number, name in enumerate(row):
            x = left + number * (WIDTH + GAP)
            package, _, rest = name.partition(".")
            boxes.append(
                f'<rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
                f'fill="{COLOURS[package]}" stroke="#64748b"/>'
                f'<text x="{x + WIDTH // 2}" y="{top + 22}" text-anchor="middle">{rest}</text>'
            )
    style = 'font-family="sans-serif" font-size="13" fill="#0f172a"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>'
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, ground, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    (HERE / "layers.svg").write_text(picture())
