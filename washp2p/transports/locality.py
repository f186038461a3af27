"""Which processes can reach each other without a network.

Two processes are at one place if they share a kernel and a network namespace. Only then can sockets
with abstract names connect them. Host names do not tell: two containers may have the same one, and
two names may mean the same host.
"""

from __future__ import annotations

import platform
import secrets
import sys
from hashlib import blake2b
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/thread-self/ns/net")


def this_place() -> str:
    """16 hex digits that are the same for all processes at this thread's place, and for no
    others.
    """
    try:
        what = f"{_BOOT.read_text().strip()} {_NETWORK.stat().st_ino}"
    except OSError:
        what = platform.node()
    return blake2b(what.encode(), digest_size=8, person=b"washp2p.place").hexdigest()


def near_address() -> str:
    """A new `ipc://` address that only processes at this place can reach; "" if there is none.

    The address is no file, and it disappears with its socket.
    """
    return f"ipc://@washp2p-{secrets.token_hex(8)}" if sys.platform == "linux" else ""
