"""Begin a run, or go on with the one whose journal is in the run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from washp2p.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.machine.members import Past
    from coordinator.service.journal import Journal


@dataclass(frozen=True)
class Opening:
    """What a coordinator knows when it begins."""

    run: bytes
    """Eight bytes that name this life of the run on both planes."""

    origin: bytes
    """`run` of the run's first life; files carry it."""

    past: Past
    """What the journal says; empty for a new run."""

    resumes: bool
    """Whether the run goes on from checkpoints, because its members are gone."""

    goes_on: bool
    """Whether the folder has a run that has not finished."""


def open_run(
    journal: Journal, folder: Path, *, resume: bool, goes_on: bool, encrypted: bool
) -> Opening:
    """Read the journal of `folder`, and write the run's ids into it.

    `goes_on` says that the folder has a run that has not finished, `resume` that this run has to go
    on from its checkpoints, `encrypted` that links are encrypted. Raises UsageError if the run
    cannot go on, or if `encrypted` is not as before.
    """
    resumes = resume or journal.fact("resuming", False)
    past = journal.read()
    if resumes:
        if not past.published:
            raise UsageError(
                f"the run in {folder} had not begun, there is nothing to go on from; start it "
                "anew with another --run-dir"
            )
        if journal.fact("ended") and not past.kept[0]:
            raise UsageError(
                f"the run in {folder} ended before its first checkpoint, there is nothing to "
                "go on from; start it anew with another --run-dir"
            )
        journal.forget_members()
    elif ended := journal.fact("ended"):
        raise UsageError(
            f"the run in {folder} has ended: {ended}; --resume it from its last checkpoint, "
            "or choose another --run-dir"
        )
    if goes_on and journal.fact("encrypted", encrypted) != encrypted:
        links = "in plain text, leave out --keys" if encrypted else "encrypted, give --keys"
        raise UsageError(f"the links of the run in {folder} are {links}")
    run = (None if resumes else journal.fact("run")) or os.urandom(8)
    origin = journal.fact("origin") or run
    for fact in (("encrypted", encrypted), ("run", run), ("origin", origin)):
        journal.keep(fact)
    journal.commit()
    return Opening(run, origin, past, resumes, goes_on)
