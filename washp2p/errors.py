"""The errors that this project raises on purpose.

Each message is one line that says what was wrong, what was given, what was expected, and the
remedy. `exit_code` is what a command line returns: 2 if the user's input is at fault, 1 if the run
failed. Nothing is caught or printed here.
"""

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

EXIT_CODES = (1, 2, INTERRUPTED)
"""All but success."""


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

    `exit_code` is the coordinator's: 2 if some member's input was at fault, else 1.
    """

    def __init__(self, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class DroppedError(RunStoppedError):
    """The coordinator has dropped this member: it hung, or was cut off.

    The run goes on. A fresh `join` takes part in it again, with the state of a live member.
    """


class ProtocolError(WashError):
    """A message that is malformed, of another version, or not what the plan says."""
