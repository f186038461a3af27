"""The errors that this project raises on purpose.

Each message is one line that says what was wrong, what was given, what was expected, and the
remedy. `exit_code` is what a command line returns: 2 if the user's input is at fault, 1 if the run
failed. Nothing is caught or printed here.
"""

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

EXIT_CODES = (1, 2, INTERRUPTED)
"""The exit codes that mean failure."""


class WashError(Exception):
    """Base of all errors of this project."""

    exit_code = 1


class UsageError(WashError, ValueError):
    """The user's input cannot work: a flag, a path, an address, or a model."""

    exit_code = 2


class JoinRefusedError(UsageError):
    """The coordinator refused this worker. The message names both sides and the remedy."""


class UnreachableError(UsageError):
    """The coordinator did not answer within the stated time."""


class RunStoppedError(WashError):
    """The run ended before this member was done. The message says who ended it, and why.

    `exit_code` is what the coordinator sent: 2 if some member's input was at fault, INTERRUPTED if
    the run was interrupted, else 1.
    """

    def __init__(self, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class DroppedError(RunStoppedError):
    """The coordinator has dropped this member, because the member hung or was cut off.

    The run goes on. A new call of `join` enters the run again, with the state of a live member.
    """


class ProtocolError(WashError):
    """A message or a snapshot is malformed, of another version, or not the expected one."""
