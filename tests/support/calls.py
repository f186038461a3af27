"""The calls of one healthy round, as docs/architecture.md lists them."""

from __future__ import annotations

import sys

from washp2p.member.core import MemberCore
from washp2p.testing import SimulatedRun

SELDOM = {"MemberCore._tell", "Store.keep"}
"""Calls of the report of every second, and of the round that it has measured."""
CORE = ("washp2p.member.", "washp2p.rounds.")


def calls_of_a_round():
    """The calls of a round after the 20th of a member in lockstep whose peers' values have come.

    Lists each named function of the core, and those of other packages that the core calls, once,
    indented by who called it. Properties, hold points and the derivation of the plan, which another
    thread does, are left out.
    """
    found, done = [], []
    run = SimulatedRun(seed=0, n=3, rounds=60, p=0.5, max_delay="0")
    whole = MemberCore.round

    def note(frame, event, _):
        if event == "call" and _named(frame):
            callers = []
            caller = frame.f_back
            while caller is not None and caller.f_code is not whole.__code__:
                callers += [caller] if _named(caller) else []
                caller = caller.f_back
            module = frame.f_globals.get("__name__", "")
            its = _in_core(frame) or not callers or _in_core(callers[0])
            line = "  " * sum(map(_in_core, callers)) + frame.f_code.co_qualname
            if caller is not None and its and module.startswith("washp2p.") and line not in found:
                found.append(line)

    def traced(self):
        procedure = whole(self)
        if done or self.parts.round_loop.round < 20:
            return (yield from procedure)
        found.clear()
        sys.setprofile(note)
        try:
            wait = next(procedure)
        except StopIteration:
            if not SELDOM.intersection(line.strip() for line in found):
                done.append(True)
            return None
        finally:
            sys.setprofile(None)
        yield wait
        return (yield from procedure)

    MemberCore.round = traced
    try:
        run.finish()
    finally:
        MemberCore.round = whole
    assert done
    return found


def _in_core(frame):
    return frame.f_globals.get("__name__", "").startswith(CORE)


def _named(frame):
    name = frame.f_code.co_name
    if name.startswith(("<", "__")) or name in {"_pass_by", "_reached", "stage", "upload"}:
        return False
    owner = type(frame.f_locals.get("self"))
    return not isinstance(getattr(owner, name, None), property)
