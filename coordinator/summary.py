"""summary.json from what the members reported. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from coordinator.membership import Member
    from washp2p.config import RunConfig


def summarise(
    config: RunConfig,
    members: Iterable[Member],
    accuracy: Mapping[str, Any],
    control_bytes: Mapping[bytes, int],
    seed_bytes: Mapping[bytes, int],
) -> dict[str, Any]:
    """The contract's summary.

    By identity, `control_bytes` is what each worker sent on the control plane and `seed_bytes`
    what it was sent in seed windows.
    """
    done = [(m, m.finished) for m in sorted(members, key=lambda m: m.id) if m.finished is not None]
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
                "expired_values": finished.expired_values,
                "payload": total["payload"],
                "header": total["header"],
                "messages": total["messages"],
                "expected_payload": total["expected"],
                "theory": finished.theory["wash"],
                "paper": finished.theory["paper"],
                "papa": finished.theory["papa"],
                "papa_all_reduce": finished.theory["papa_all_reduce"],
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
        "parameters": done[0][1].theory["parameters"],
        "accuracy": {
            key: accuracy.get(key) for key in ("members", "ensemble", "averaged", "greedy_soup")
        },
        "averaged_over": [member.id for member, _ in done],
        "bytes": rows,
        "lost_values": sum(finished.expired_values for _, finished in done),
    }
