"""A worker's connection to the coordinator: a conversation over a socket.

Messages arrive on the control socket's thread while the member computes. Nothing here touches a
parameter.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from washp2p.coordinator_link.control_socket import ControlSocket, unanswered
from washp2p.coordinator_link.conversation import Conversation
from washp2p.errors import UsageError, WashError
from washp2p.protocol.endpoints import split_tcp
from washp2p.runfolder import checkpoints, rundir
from washp2p.transports.locality import this_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from washp2p.protocol.roster import MemberId
    from washp2p.sockets.keys import JoinKey


class Connection(Conversation):
    """A place in a run: the member's id, and the run's configuration.

    Made by `washp2p.connect`. Pass it to `washp2p.join` together with a model built from `config`.
    Call its methods on one thread only. None blocks, but `leave` and `close` may take a second.
    """

    folder: Path
    """The folder on this host for the run's files."""

    def __init__(
        self,
        address: str,
        wait: float,
        run_dir: Path | None,
        keys: JoinKey | None = None,
        rank: int | None = None,
    ) -> None:
        """Say hello and wait for the answer; arguments are as in `washp2p.connect`."""
        host, port = split_tcp(address)
        if host == "*" or port in {"*", "0"}:
            raise UsageError(f"{address} is not one coordinator's address; name its host and port")
        super().__init__(address, sockets.gethostname(), os.getpid(), this_place(), rank)
        self._changed = threading.Condition()
        self._on_change: Callable[[], None] = lambda: None
        self._on_stop: Callable[[WashError], None] = _ignore
        self.encrypted = keys is not None
        """Whether links are encrypted, to the coordinator and among members."""
        self._run_dir = run_dir
        self._socket = ControlSocket(
            address,
            keys,
            receive=self.hear,
            returned=self.what_may_be_missed,
            failed=self._fail,
        )
        try:
            self.greet()
            with self._changed:
                self._changed.wait_for(lambda: self._welcome or self._failure, wait)
        except BaseException:
            self.close()
            raise
        if self._welcome is None:
            self.close()
            raise self._failure or unanswered(address, wait, keys, unlike=self._socket.unlike)
        try:
            self.begin()
        except UsageError as error:
            self.leave(error)
            raise
        self._socket.absence.patience = self.patience

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback`, on the control thread, whenever a message has arrived."""
        with self._changed:
            self._on_change = callback

    def on_stop(self, callback: Callable[[WashError], None]) -> None:
        """Call `callback` on the control thread as soon as the run ends early.

        If the run has ended early already, this calls `callback` at once, on the caller's thread.
        The training thread learns of the end in its next round.
        """
        with self._changed:
            self._on_stop = callback
        self._tell_of_stop()

    def leave(self, error: BaseException) -> None:
        """Leave the run early because of `error`. The other members are told."""
        self.tell_why(error)
        self.close()

    def close(self) -> None:
        """Close the connection. Sent messages still leave. Harmless when called twice."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        self._socket.send(data)

    def _answer(self, data: bytes) -> None:
        self._socket.answer(data)

    def _open_folder(self, name: str) -> None:
        self.folder = self._folder_of(name)

    def _folder_of(self, name: str) -> Path:
        return self._run_dir or Path("runs") / rundir.check_name(name)

    def _held(self, name: str, rounds: Sequence[int]) -> list[tuple[int, MemberId]]:
        return checkpoints.held(self._folder_of(name), rounds)

    def _forget(self, rounds: range) -> None:
        checkpoints.forget(self.folder, rounds)

    def _tell_of_stop(self) -> None:
        with self._changed:
            if self._failure is None:
                return
            callback, self._on_stop = self._on_stop, _ignore
        callback(self._failure)

    def _announce(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._tell_of_stop()
        self._on_change()


def _ignore(_: WashError) -> None:
    pass
