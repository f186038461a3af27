"""Folders of image files, one for each class. Unreadable files are named, or skipped and counted.

A loader's processes import this module.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises for a damaged file."""
_log = logging.getLogger("washp2p")


class UnreadableImageError(UsageError):
    """An image file cannot be read. Raised in a loader's process, and again in the member's."""

    def __init__(self, text: str) -> None:
        last = text.strip().splitlines()[-1]  # a loader puts its process's traceback before it
        super().__init__(last.rpartition("UnreadableImageError: ")[2] or last)


class ImageFiles(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    """The files FOLDER/CLASS/*, without hidden folders and files.

    An image that cannot be read raises UnreadableImageError. If `skipped` (a shared Value) is
    given, the image is counted there instead, and the next readable image takes its place.
    """

    def __init__(self, root: Path, transform: Callable[[Any], Any], skipped: Any = None) -> None:
        super().__init__(root, transform, is_valid_file=_is_image)
        self._skipped = skipped

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of classes, and their numbers. Raises FileNotFoundError if there are none."""
        names = sorted(
            path.name
            for path in Path(directory).iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )
        if not names:
            raise FileNotFoundError(f"no folder of a class in {directory}")
        return names, {name: number for number, name in enumerate(names)}

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Image and class number. Raises UnreadableImageError."""
        for place in range(index, index + len(self)):
            path, _ = self.samples[place % len(self)]
            try:
                found: tuple[Any, Any] = super().__getitem__(place % len(self))
            except UNREADABLE as error:
                if self._skipped is None:
                    raise UnreadableImageError(
                        f"cannot read the image {path}: {error!s:.100}; mend or remove it, or give "
                        "--on-bad-image skip"
                    ) from None
                with self._skipped.get_lock():
                    self._skipped.value += 1
                _log.warning("skipped an image that cannot be read: %s (%s)", path, error)
            else:
                return found
        raise UnreadableImageError(f"no image in {self.root} can be read; expected some")


def _is_image(path: str) -> bool:
    return not Path(path).name.startswith(".") and path.lower().endswith(IMG_EXTENSIONS)
