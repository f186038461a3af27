"""summary.json: what the members reported, on disk before workers are let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.errors import UsageError
from washp2p.runfolder import rundir

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
    """The contract's summary.

    By identity, `control_bytes` is what each worker sent on the control plane and `seed_bytes`
    what it was sent in seed windows. `refused` counts what the coordinator has refused.
    """
    config = run.config
    members = sorted(run.members.values(), key=lambda m: m.id)
    done = [(m, m.finished) for m in members if m.finished is not None]
    assert run.settled is not None
    rounds = max(finished.rounds for _, finished in done)
    seconds = max(finished.seconds for _, finished in done)
    rows = []
    for member, finished in done:
        exchanges = [link for link in member.counts if link["kind"] == "exchange"]
        total = {
            key: sum(link[key] for link in exchanges)
            for key in ("payload", "header", "messages", "expected")
        }
        rows.append(
            {
                "member": member.id,
                "host": member.host,
                "steps": finished.steps,
                "seconds": round(finished.seconds, 3),
                "waited": round(finished.waited, 3),
                "max_delay": finished.max_delay,
                "applied_values": finished.applied_values,
                "expired_values": sum(finished.lost.values()),
                "lost": finished.lost,
                "refused_values": finished.refused_values,
                "refused_messages": finished.refused_messages,
                "payload": total["payload"],
                "header": total["header"],
                "messages": total["messages"],
                "expected_payload": total["expected"],
                "theory": finished.theory,
                "paper": finished.paper,
                "papa": finished.papa,
                "papa_all_reduce": finished.papa_all_reduce,
                "control": control_bytes[member.identity],
                "seeds_received": seed_bytes[member.identity],
                "links": member.counts,
            }
        )
    return {
        "method": config.method,
        "n": config.n,
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(rounds / seconds, 2) if seconds else 0.0,
        "parameters": done[0][1].parameters,
        "accuracy": {
            key: run.accuracy.get(key)
            for key in ("over", "members", "ensemble", "averaged", "greedy_soup")
        },
        "averaged_over": list(run.settled.members),
        "averages": run.averages,
        "averaged_after": run.averaged_after,
        "notices": run.notices,
        "epochs": [
            {"epoch": roster.epoch, "first_round": roster.first, "members": list(roster.members)}
            for roster in (*run.history, *run.rosters)
        ],
        "departed": [
            {"member": gone.member, "host": gone.host, "reason": gone.reason, "round": gone.round}
            for gone in run.departed
        ],
        "bytes": rows,
        "refused_messages": {str(reason): count for reason, count in refused.items()},
        "lost_values": sum(row["expired_values"] for row in rows),
    }


class SummaryFile:
    """summary.json on a disk that may be full: room is reserved, writing is tried again.

    `tell` is told once that there is no room.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._told = False
        self.unwritten = False
        """Whether it was to be written and could not be."""

    def reserve(self, summary: dict[str, Any], more: int) -> bool:
        """Have room for twice such a `summary` and `more` bytes; whether there is."""
        try:
            rundir.reserve(self._path, 2 * len(rundir.to_json(summary)) + more)
        except UsageError as error:
            self._say(f"{error}; workers wait until there is room")
            return False
        return True

    def write(self, summary: dict[str, Any]) -> None:
        """Write it; if there is no room, it is `unwritten` and to be written again."""
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
