"""Carries out the state machine's commands in order: writes the journal before it tells others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.commands import EndRun, Keep, Rewind, Send
from washp2p.protocol.messages.control import messages
from washp2p.protocol.messages.from_coordinator import Kept, Ping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.machine.commands import Command
    from coordinator.service.journal import Journal
    from washp2p.protocol.messages.control import Message


class CommandRunner:
    """Writes entries into `journal`, and sends a message after all earlier entries are committed.

    `send` and `perform` are callbacks. `send` gets a worker's identity, a message, and the encoded
    message, and returns whether the worker is connected. `perform` gets every command that is
    neither a Send nor a Keep.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[bytes, Message, bytes], bool],
        perform: Callable[[Command], None],
    ) -> None:
        self._journal = journal
        self._send = send
        self._perform = perform
        self._unreachable: set[bytes] = set()

    @property
    def has_unreachable(self) -> bool:
        """Whether a worker was not connected when it was sent something."""
        return bool(self._unreachable)

    def run(self, commands: Iterable[Command]) -> None:
        """Carry out `commands`."""
        encoded: Message | None = None
        data = b""
        for command in commands:
            match command:
                case Send(identity, message):
                    self._journal.commit()  # before anybody hears of it
                    if isinstance(message, Kept) and self._journal.failing:
                        continue  # the checkpoint that the journal names must stay
                    if message is not encoded:  # what all are sent is encoded once
                        data, encoded = messages.encode(message), message
                    if not self._send(identity, message, data):
                        self._unreachable.add(identity)
                case Keep(what):
                    self._journal.keep(what)
                case Rewind():
                    self._journal.keep(command)
                    self._perform(command)
                case EndRun(reason):
                    self._perform(command)
                    self._journal.keep(("ended", reason))
                case _:
                    self._perform(command)
        self._journal.commit()

    def give_up_unreachable(self, gone: Callable[[bytes], Iterable[Command]]) -> None:
        """Ping each worker that was not connected. If it still is not, carry out `gone`'s commands.

        `gone` is a callback: it gets the worker's identity, and returns commands. Call this method
        once the last messages of workers are read.
        """
        while self._unreachable:
            identity = min(self._unreachable)
            self._unreachable.discard(identity)
            ping = Ping()
            if not self._send(identity, ping, messages.encode(ping)):  # it has not come back since
                self.run(gone(identity))
