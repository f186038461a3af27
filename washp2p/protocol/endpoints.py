"""Addresses: where to listen, what to tell peers, and what is allowed in plain text.

Pure, but for asking the kernel which local address faces another host.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from washp2p.errors import UsageError

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+|\*):(?P<port>\d{1,5}|\*)")
_NEAR = re.compile(r"ipc://@washp2p-[0-9a-f]{1,64}|torch://127\.0\.0\.1:\d{1,5}/[A-Za-z0-9-]{1,64}")
ANY_LOOPBACK_PORT = "tcp://127.0.0.1:*"


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
    """Raise UsageError unless `address` can be a member's for those at its place."""
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
    """Refuse plain text that leaves the machine, unless `insecure` says it may.

    Raises UsageError.
    """
    if not encrypted and not insecure and not is_loopback(endpoint):
        raise UsageError(
            f"{endpoint} is not on loopback and there are no keys to encrypt links with; make some "
            "with `washp2p keys init keys`, copy keys/join.key to every host with workers, and "
            "give every part --keys keys (from Python, keys=); or, on a network you trust, add "
            "--insecure (insecure=True)"
        )


def http_address(address: str, *, public: bool) -> tuple[str, int]:
    """Host and port of HOST:PORT to serve at, port 0 (or `*`) being any that is free.

    What is served there is plain text to be read by whoever comes: off loopback only if it is
    `public`. Raises UsageError.

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


def facing(endpoint: str) -> str:
    """The local address from which this host would reach `endpoint`, as `tcp://HOST:*`.

    Sends nothing. Raises UsageError if there is no route or the name is unknown.
    """
    host, port = split_tcp(endpoint)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            local = str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"no way to {endpoint}: {error.strerror or error}; check the host's name and network"
        ) from None
    return f"tcp://[{local}]:*" if ":" in local else f"tcp://{local}:*"


def where_to_listen(coordinator: str, bind: str | None, *, encrypted: bool, insecure: bool) -> str:
    """Where a member's data plane listens: at `bind`, or on the side facing its coordinator.

    Raises UsageError, also for plain text off loopback without `insecure`.
    """
    if bind is None:
        bind = ANY_LOOPBACK_PORT if is_loopback(coordinator) else facing(coordinator)
    require_loopback(bind, encrypted=encrypted, insecure=insecure)
    return bind


def advertised(bound: str, advertise: str | None, coordinator: str) -> str:
    """What peers are told to connect to, given where a socket was `bound`.

    `advertise` (`tcp://HOST` or `tcp://HOST:PORT`) wins, with the bound port where it names none; a
    socket bound to all addresses is reached at the one facing the coordinator.
    """
    host, port = split_tcp(bound)
    if advertise is not None:
        named = advertise if re.search(r":(\d+|\*)$", advertise) else f"{advertise}:{port}"
        split_tcp(named)
        return named
    if host in {"0.0.0.0", "::"}:
        return facing(coordinator).replace("*", port)
    return bound
