"""Whether a member's message can be true. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.machine.members import Phase
from washp2p.protocol.ledger import Kind, Ledger, Loss
from washp2p.protocol.messages.fields import QUARTERS
from washp2p.protocol.messages.from_worker import (
    Accounts,
    Averaged,
    Averaging,
    Back,
    Busy,
    Finished,
    Progress,
    Result,
    Saved,
    Surveyed,
    Synced,
    Vitals,
)
from washp2p.protocol.refusals import Reason
from washp2p.protocol.roster import roster_at

if TYPE_CHECKING:
    from coordinator.machine.members import KnownMember
    from coordinator.machine.population import Population
    from washp2p.protocol.messages.control import Message

LARGEST = 1e300
LONGEST = 1e7
"""Seconds that a member may be busy."""


def implausible(  # noqa: PLR0911, PLR0912 - a case a message
    population: Population, member: KnownMember, message: Message
) -> str:
    """Why a member's message cannot be true; "" if it can."""
    match message:
        case Progress(rounds) | Finished(rounds=rounds) if rounds > population.published:
            return f"has finished round {rounds}, seeds are out up to {population.published}"
        case Saved(number) if number > population.published:
            return f"has a checkpoint of round {number}, seeds are out up to {population.published}"
        case Back(generations, seeds) if (
            generations > population.next_generation or seeds > population.published
        ):
            return f"has seeds up to round {seeds} and rosters of {generations} generations"
        case Synced(generation) | Averaged(generation=generation) if (
            generation > population.roster.generation
        ):
            return f"is in generation {generation}, the newest is {population.roster.generation}"
        case Averaging(number, after) if number > population.averages + 1 or (
            after > population.published
        ):
            return f"begins average {number} after round {after}, {population.averages} were taken"
        case Averaged(number=number) if number > member.averaging[0]:
            return f"holds average {number}, it has begun {member.averaging[0]}"
        case Busy(seconds) if not 0 <= seconds <= LONGEST:
            return f"is busy for {seconds} s"
        case Result(over=over, members=members):
            there = population.settled.members if population.settled is not None else ()
            if not over or len(over) != len(members) or not set(over) <= set(there):
                return f"has evaluated members {over!r:.200}, averaged are {there}"
        case Surveyed() if not _may_have_found(population, member, message):
            return f"has found {message!r:.200}, which cannot be"
        case Finished() | Accounts() if population.settled is None:
            return "has finished, nobody has averaged yet"
        case Vitals(sent=sent) if not {row[1] for row in sent} <= set(Kind):
            return "has sent what is sent for nothing"
        case (
            Vitals(lost=lost, refused_messages=refused)
            | Finished(lost=lost, refused_messages=refused)
        ) if not (set(lost) <= set(Loss) and set(refused) <= set(Reason)):
            return "has lost or refused what nobody does"
        case Accounts(counts):
            if member.phase < Phase.FINISHED:
                return "accounts for a run that it has not finished"
            try:
                Ledger().load(counts)
            except ValueError as error:
                return f"has accounts that are none: {error!s:.200}"
    return ""


def _may_have_found(population: Population, member: KnownMember, part: Surveyed) -> bool:
    """Whether `member` was in the roster of the surveyed round, and its values are possible."""
    rosters = population.rosters
    if not rosters or not rosters[0].first <= part.round <= population.published:
        return False
    members = roster_at(rosters, part.round).members
    squares = part.squares
    fits = len(members) == part.members and member.id in members and len(squares) == QUARTERS
    return fits and all(0 <= square < LARGEST for square in squares)
