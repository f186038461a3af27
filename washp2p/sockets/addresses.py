"""Where a member's socket listens, and the address that its peers are told."""

from __future__ import annotations

import re
import socket

from washp2p.errors import UsageError
from washp2p.protocol.endpoints import is_loopback, require_loopback, split_tcp

ANY_LOOPBACK_PORT = "tcp://127.0.0.1:*"


def facing(endpoint: str) -> str:
    """The local address from which this host reaches `endpoint`, as `tcp://HOST:*`.

    Sends nothing to `endpoint`, but may look up its name (DNS), which blocks. Raises UsageError if
    there is no route or the name is unknown.
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
    """The address of a member's data plane: `bind`, or the address facing its coordinator.

    Raises UsageError if there is no such address, or if it is off loopback and links are neither
    `encrypted` nor allowed to be in plain text by `insecure`.
    """
    if bind is None:
        bind = ANY_LOOPBACK_PORT if is_loopback(coordinator) else facing(coordinator)
    require_loopback(bind, encrypted=encrypted, insecure=insecure)
    return bind


def advertised(bound: str, advertise: str | None, coordinator: str) -> str:
    """The address that peers are told, for a socket that listens at `bound`.

    If `advertise` (`tcp://HOST` or `tcp://HOST:PORT`) is given, it is used, with the port of
    `bound` if it names none. For a socket bound to all addresses, peers are told the one facing the
    coordinator.
    """
    host, port = split_tcp(bound)
    if advertise is not None:
        named = advertise if re.search(r":(\d+|\*)$", advertise) else f"{advertise}:{port}"
        split_tcp(named)
        return named
    if host in {"0.0.0.0", "::"}:
        return facing(coordinator).replace("*", port)
    return bound
