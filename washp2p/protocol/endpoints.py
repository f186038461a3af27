"""Checks addresses, and decides which of them may be used without encryption. Does no I/O."""

from __future__ import annotations

import ipaddress
import re

from washp2p.errors import UsageError

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+|\*):(?P<port>\d{1,5}|\*)")
_NEAR = re.compile(r"ipc://@washp2p-[0-9a-f]{1,64}|torch://127\.0\.0\.1:\d{1,5}/[A-Za-z0-9-]{1,64}")


def split_tcp(endpoint: str) -> tuple[str, str]:
    """Host and port of `tcp://HOST:PORT`. Raises UsageError on anything else.

    >>> split_tcp("tcp://[::1]:5555")
    ('::1', '5555')
    """
    match = _TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
        raise UsageError(f"{endpoint!r} is not an address; expected tcp://HOST:PORT")
    return match["host"].strip("[]"), match["port"]


def check_reachable(endpoint: str) -> None:
    """Raise UsageError unless `endpoint` is one that others could connect to."""
    host, port = split_tcp(endpoint)
    if host == "*" or not port.isdecimal() or not int(port):
        raise UsageError(f"{endpoint!r} is not one host's address and port; expected both")


def check_near(address: str) -> None:
    """Raise UsageError unless `address` can be a member's address for peers on its machine."""
    if _NEAR.fullmatch(address) is None:
        raise UsageError(
            f"{address!r:.100} is not a member's address; expected ipc://@washp2p-... or "
            "torch://127.0.0.1:PORT/DEVICE"
        )


def is_loopback(endpoint: str) -> bool:
    """Whether traffic of `endpoint` cannot leave this machine.

    >>> is_loopback("tcp://127.0.0.1:5555"), is_loopback("tcp://192.0.2.1:5555")
    (True, False)
    """
    host, _ = split_tcp(endpoint)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(endpoint: str, *, encrypted: bool, insecure: bool) -> None:
    """Raise UsageError if plain text would leave this machine and `insecure` does not allow it."""
    if not encrypted and not insecure and not is_loopback(endpoint):
        raise UsageError(
            f"{endpoint} is not on loopback and there are no keys to encrypt links with; make some "
            "with `washp2p keys init keys`, copy keys/join.key to every host with workers, and "
            "give every part --keys keys (from Python, keys=); or, on a network you trust, add "
            "--insecure (insecure=True)"
        )


def http_address(address: str, *, public: bool) -> tuple[str, int]:
    """Host and port from HOST:PORT. Port 0 or `*` means any free port.

    Plain text is served there to anyone who connects. An address off loopback needs `public`.
    Raises UsageError.

    >>> http_address("127.0.0.1:8080", public=False)
    ('127.0.0.1', 8080)
    """
    try:
        host, port = split_tcp(f"tcp://{address}")
    except UsageError:
        raise UsageError(f"{address!r} is not an address; expected HOST:PORT") from None
    if not public and not is_loopback(f"tcp://{address}"):
        raise UsageError(
            f"{address} is not on loopback: whoever reaches it could look at the run; add --public "
            "if they may"
        )
    return "0.0.0.0" if host == "*" else host, 0 if port == "*" else int(port)
