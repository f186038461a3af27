"""`washp2p status`: shows a live run from any host. It takes no part in the run."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import zmq
from rich.console import Console
from rich.live import Live

from washp2p.errors import ProtocolError, UnreachableError
from washp2p.protocol.endpoints import require_loopback, split_tcp
from washp2p.protocol.messages.control import MESSAGE_LIMIT, messages
from washp2p.protocol.messages.from_coordinator import Refuse, View
from washp2p.protocol.messages.from_worker import Look
from washp2p.protocol.patience import Patience
from washp2p.reporting.status_table import render
from washp2p.sockets.curve_auth import present
from washp2p.sockets.heartbeats import close_dead_links

if TYPE_CHECKING:
    from washp2p.sockets.keys import JoinKey

WIDTH = 120
"""The least number of columns of output that does not go to a terminal."""
EVERY_SECONDS = 1.0
"""How often a live view asks the coordinator again."""


class Observer:
    """A connection to a coordinator, for looking only. A context manager."""

    def __init__(self, address: str, keys: JoinKey | None, *, insecure: bool, wait: float) -> None:
        """Connect to `address`. An answer may take `wait` seconds. Raises UsageError."""
        split_tcp(address)
        require_loopback(address, encrypted=keys is not None, insecure=insecure)
        self._address = address
        self._wait = wait
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        close_dead_links(self._socket, Patience())
        self._socket.set(zmq.MAXMSGSIZE, MESSAGE_LIMIT)
        self._socket.set(zmq.IPV6, "[" in address)
        if keys is not None:
            present(self._socket, keys.own, keys.coordinator)
        self._socket.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def look(self) -> dict[str, Any]:
        """Fetch the view of the run. Blocks. Raises UnreachableError, ProtocolError."""
        self._socket.send(messages.encode(Look()))
        until = time.monotonic() + self._wait
        while self._socket.poll(max(0, round(1000 * (until - time.monotonic())))):
            match messages.decode(self._socket.recv()):
                case View(values):
                    return values
                case Refuse(reason):
                    raise ProtocolError(reason)
        raise UnreachableError(
            f"no coordinator answered at {self._address} within {self._wait:g} s; is its run over, "
            "or does it want --keys, the same as its workers?"
        )


def show(observer: Observer, *, as_json: bool, once: bool) -> int:
    """Print the state of a run: on a terminal until the run ends, elsewhere once.

    With `once` or `as_json`, print it once in any case. Returns the exit code.
    """
    if as_json:
        print(json.dumps(observer.look(), indent=1))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    view = observer.look()
    if once or not console.is_terminal:
        console.print(render(view))
        return 0
    with Live(render(view), console=console, auto_refresh=False) as live:
        while view["state"] != "ended":
            time.sleep(EVERY_SECONDS)
            try:
                view = observer.look()
            except UnreachableError as gone:
                print(gone, file=sys.stderr)
                return gone.exit_code
            live.update(render(view), refresh=True)
    return 0
