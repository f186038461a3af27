"""The versions that the coordinator and the workers compare before they work together."""

import platform
from importlib.metadata import PackageNotFoundError, version

DERIVATION = 2
"""Changes whenever a single bit of any plan does; see `plan.py`."""

try:
    VERSION = version("washp2p")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+source"


def installed() -> dict[str, str | int]:
    """The versions of installed packages that a run depends on. Imports none of them."""
    found: dict[str, str | int] = {
        "washp2p": VERSION,
        "derivation": DERIVATION,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("torch", "torchvision", "numpy", "pyzmq", "msgpack", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
