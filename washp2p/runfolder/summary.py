"""The content of summary.json, the same for distributed and simulated runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from washp2p.protocol.messages.from_worker import Finished
    from washp2p.protocol.roster import MemberId


def member_row(
    member: MemberId,
    host: str,
    finished: Finished,
    links: Sequence[Mapping[str, Any]],
    *,
    control: int = 0,
    seeds_received: int = 0,
) -> dict[str, Any]:
    """One member's row in summary.json: what it did and what it sent. All sizes are in bytes.

    `links` has a row for each peer, kind and wire. `control` is the size of the member's messages
    to the coordinator, `seeds_received` that of the seeds that the member received.
    """
    exchanges = [link for link in links if link["kind"] == "exchange"]
    total = {
        key: sum(link[key] for link in exchanges)
        for key in ("payload", "header", "messages", "expected")
    }
    return {
        "member": member,
        "host": host,
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
        "control": control,
        "seeds_received": seeds_received,
        "links": list(links),
    }


def run_totals(
    method: str,
    n: int,
    rows: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    seconds: float,
    parameters: int,
) -> dict[str, Any]:
    """The totals of a run in summary.json. `rows` are from `member_row`."""
    return {
        "method": method,
        "n": n,
        "rounds": rounds,
        "seconds": round(seconds, 3),
        "rounds_per_second": round(rounds / seconds, 2) if seconds else 0.0,
        "parameters": parameters,
        "bytes": list(rows),
        "lost_values": sum(row["expired_values"] for row in rows),
    }
