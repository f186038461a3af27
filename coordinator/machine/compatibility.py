"""Checks whether a worker fits a run. Most functions return why it does not, or "". No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from washp2p.protocol.endpoints import is_loopback
from washp2p.protocol.messages.control import PROTOCOL
from washp2p.protocol.messages.fields import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.messages.from_worker import Hello

SOME = 4
"""How many names a text lists before it says how many more there are."""


def objection(hello: Hello, version: str, derivation: int) -> str:
    """Why a worker's versions do not match those of the coordinator; "" if they do."""
    for what, theirs, ours in (
        ("protocol version", hello.protocol, PROTOCOL),
        ("version of washp2p", hello.version, version),
        ("plan derivation", hello.derivation, derivation),
    ):
        if theirs != ours:
            return (
                f"{what} {theirs} on {hello.host}, {ours} at the coordinator; "
                "install the same version of washp2p on both"
            )
    return ""


def mismatch(
    member: KnownMember,
    layout: Layout,
    rounds: int,
    others: Sequence[KnownMember],
    total_rounds: int,
) -> str:
    """How a member's `layout` or `rounds` differ from the attached `others`; "" if they do not."""
    if not others or others[0].layout is None:
        return ""
    difference = layout.difference(others[0].layout)
    if difference:
        return (
            f"the model of {member} does not fit that of {others[0]}: {difference}; "
            "build the same model, on the same kind of device, with the same optimizer"
        )
    if rounds != total_rounds:
        return (
            f"{member} will take part in {rounds} rounds, {others[0]} in "
            f"{total_rounds}; give both the same data and the same number of steps"
        )
    return ""


def same_endpoint(member: KnownMember, others: Sequence[KnownMember]) -> str:
    """Why a member cannot use its address: another member already does; "" if none does."""
    for other in others:
        if other is not member and other.endpoint == member.endpoint:
            return (
                f"{member} advertises {member.endpoint}, and so does {other}; give each an address "
                "of its own (--bind, --advertise); if that one has died, try again in some seconds"
            )
    return ""


def layers_in_words(layout: Layout, schedule: str) -> str:
    """A text with the parameters of the first and last layer, and how often each is shuffled."""
    first, last = (
        ", ".join(entry.name for entry in layout.entries if entry.layer == number)
        for number in (0, layout.layers - 1)
    )
    if layout.layers == 1:
        return f"the model is one layer: {first}"
    rates = {
        "decreasing": ("shuffled most", "never shuffled"),
        "increasing": ("never shuffled", "shuffled most"),
    }
    top, end = rates.get(schedule, ("shuffled", "shuffled like all"))
    return (
        f"layer 0 of {layout.layers}, {top}: {first}; the last, {end}: {last} (another one by "
        "--last NAME)"
    )


def buffers_in_words(layout: Layout) -> str:
    """How the model's buffers are averaged; "" if it has none."""
    by_rule: dict[str, list[str]] = {}
    for buffer in layout.buffers:
        by_rule.setdefault(buffer.rule, []).append(buffer.name)
    told = [
        f"{rule}: {', '.join(names[:SOME])}"
        + (f" and {len(names) - SOME} more" * (len(names) > SOME))
        for rule, names in by_rule.items()
    ]
    return f"buffers by rule: {'; '.join(told)}" if told else ""


def unreachable(members: Sequence[KnownMember]) -> str:
    """Why others cannot reach the data plane of some member; "" if they can reach all."""
    for member in members:
        elsewhere = sorted({other.host for other in members if other.place != member.place})
        if elsewhere and is_loopback(member.endpoint):
            return (
                f"{member} listens at {member.endpoint}, which others ({', '.join(elsewhere)}: "
                "another host, or another network namespace) cannot reach; start it with --bind "
                "or --advertise and an address of its host"
            )
    return ""


def misfit(
    population: Population, member: KnownMember, layout: Layout, rounds: int, *, resumes: bool
) -> str:
    """Why a member does not fit this population; "" if it does.

    `resumes` says that the run goes on from a checkpoint.
    """
    others = [m for m in population.members.values() if m.layout is not None]
    reason = mismatch(member, layout, rounds, others, population.total_rounds)
    reason = reason or same_endpoint(member, others)
    if resumes and rounds != population.total_rounds:
        reason = f"{member} comes for {rounds} rounds, the run has {population.total_rounds}"
    if population.started:
        reason = reason or unreachable([*population.enrolled(), member])
        if population.ending:
            reason = reason or f"{member} came too late: the last rounds of the run are on"
    return reason


def check_key(population: Population, key: bytes, *, encrypted: bool) -> None:
    """Raise ValueError unless `key` can be the public key of a new member's data plane."""
    if len(key) != (KEY_BYTES if encrypted else 0):
        expected = "one" if encrypted else "none: links are in plain text"
        raise ValueError(f"its data plane has a key of {len(key)} bytes; expected {expected}")
    if key and any(key == member.key for member in population.members.values()):
        raise ValueError("its data plane has the key of another member")


def closed(population: Population) -> str:
    """Why no further worker can join; an empty string if one can."""
    n = population.config.n
    if population.ended:
        return "the run has ended; start a new coordinator"
    if len(population.members) >= n:
        return f"the run has its {n} members; start the coordinator with a larger --n to have more"
    if population.ending:
        return "the run is ending: its last rounds are on; start a new coordinator"
    return too_late(population) if population.started else ""


def too_late(population: Population) -> str:
    """Why no worker can join after the start; "" if one can."""
    if not (why := population.no_snapshots):
        return ""
    return f"nobody can join late: the optimizer's state cannot be given to others ({why})"
