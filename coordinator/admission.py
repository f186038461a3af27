"""Who may join, and what can be: why a worker, or what it says, does not fit; empty if it does.

Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.members import Phase
from washp2p.control import (
    PROTOCOL,
    Accounts,
    Averaged,
    Back,
    Finished,
    Hello,
    Progress,
    Result,
    Saved,
    Synced,
)
from washp2p.endpoints import is_loopback
from washp2p.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.members import Member
    from coordinator.population import Population
    from washp2p.control import Message
    from washp2p.layout import Layout


def objection(hello: Hello, version: str, derivation: int) -> str:
    """Why a worker of this version cannot be in a run of the coordinator's."""
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
    member: Member, layout: Layout, rounds: int, others: Sequence[Member], total_rounds: int
) -> str:
    """Why a member's model or number of rounds is not that of `others`, who have attached."""
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


def unreachable(members: Sequence[Member]) -> str:
    """Why some member's data plane cannot be reached by the others."""
    hosts = sorted({member.host for member in members})
    for member in members:
        if len(hosts) > 1 and is_loopback(member.endpoint):
            return (
                f"{member} listens at {member.endpoint}, which other hosts "
                f"({', '.join(hosts)}) cannot reach; start it with --bind or --advertise and "
                "an address of its host"
            )
    return ""


def implausible(  # noqa: PLR0911 - a case a message
    population: Population, member: Member, message: Message
) -> str:
    """Why a member cannot be telling the truth."""
    match message:
        case Progress(rounds) | Finished(rounds=rounds) if rounds > population.published:
            return f"has finished round {rounds}, seeds are out up to {population.published}"
        case Saved(number) if number > population.published:
            return f"has a checkpoint of round {number}, seeds are out up to {population.published}"
        case Back(epochs, seeds) if epochs > population.next_epoch or seeds > population.published:
            return f"has seeds up to round {seeds} and rosters of {epochs} epochs"
        case Synced(epoch) | Averaged(epoch) if epoch > population.roster.epoch:
            return f"is in epoch {epoch}, the newest is {population.roster.epoch}"
        case Result(over, members):
            there = population.settled.members if population.settled is not None else ()
            if not over or len(over) != len(members) or not set(over) <= set(there):
                return f"has evaluated members {over!r:.200}, averaged are {there}"
        case Finished() | Accounts() if population.settled is None:
            return "has finished, nobody has averaged yet"
        case Accounts(counts):
            if member.phase < Phase.FINISHED:
                return "accounts for a run that it has not finished"
            try:
                Ledger().load(counts)
            except (KeyError, TypeError, ValueError) as error:
                return f"has accounts that are none: {error!r:.200}"
    return ""
