"""summary.json: what the members reported. Its space is reserved before workers may leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError
from washp2p.runfolder import rundir
from washp2p.runfolder.summary import member_row, run_totals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from coordinator.machine.population import Population
    from washp2p.protocol.refusals import Reason


def summarise(
    run: Population,
    control_bytes: Mapping[bytes, int],
    seed_bytes: Mapping[bytes, int],
    refused: Mapping[Reason, int],
) -> dict[str, Any]:
    """The content of summary.json.

    `control_bytes` has the bytes that each worker sent to the coordinator. `seed_bytes` has the
    bytes that each worker received in seed windows. The keys of both are identities. `refused`
    counts the messages that the coordinator refused.
    """
    config = run.config
    members = sorted(run.members.values(), key=lambda m: m.id)
    done = [(m, m.finished) for m in members if m.finished is not None]
    assert run.settled is not None
    rounds = max(finished.rounds for _, finished in done)
    seconds = max(finished.seconds for _, finished in done)
    rows = [
        member_row(
            member.id,
            member.host,
            finished,
            member.counts,
            control=control_bytes[member.identity],
            seeds_received=seed_bytes[member.identity],
        )
        for member, finished in done
    ]
    totals = run_totals(
        config.method.name,
        config.n,
        rows,
        rounds=rounds,
        seconds=seconds,
        parameters=done[0][1].parameters,
    )
    return totals | {
        "accuracy": {
            key: run.accuracy.get(key)
            for key in ("over", "members", "ensemble", "averaged", "greedy_soup")
        },
        "averaged_over": list(run.settled.members),
        "averages": run.averages,
        "averaged_after": run.averaged_after,
        "notices": run.notices,
        "rosters": [
            {
                "generation": roster.generation,
                "first_round": roster.first,
                "members": list(roster.members),
            }
            for roster in (*run.history, *run.rosters)
        ],
        "departed": [
            {"member": gone.member, "host": gone.host, "reason": gone.reason, "round": gone.round}
            for gone in run.departed
        ],
        "refused_messages": {str(reason): count for reason, count in refused.items()},
    }


class SummaryFile:
    """Writes summary.json to a disk that may be full: it reserves space, and tries again.

    `tell` is called once when there is no space.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._told = False
        self.unwritten = False
        """Whether the last `write` failed, so that the summary is still to be written."""

    def reserve(self, summary: dict[str, Any], more: int) -> bool:
        """Reserve space for twice the size of `summary`, plus `more` bytes.

        Returns whether there is enough.
        """
        try:
            rundir.reserve(self._path, 2 * len(rundir.to_json(summary)) + more)
        except UsageError as error:
            self._say(f"{error}; workers wait until there is room")
            return False
        return True

    def write(self, summary: dict[str, Any]) -> None:
        """Write the file. If the disk is full, this sets `unwritten`, and the caller must call
        `write` again later.
        """
        try:
            rundir.write_reserved(self._path, summary)
            self.unwritten = False
        except UsageError as error:
            self.unwritten = True
            self._say(f"{error}; it is tried again until there is room")

    def _say(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._tell(text)
