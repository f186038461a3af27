"""Train an ensemble peer to peer, end with one averaged model.

    with washp2p.join("tcp://host:5555", model, optimizer) as member:
        for inputs, targets in loader:
            ...
            optimizer.step()          # the round runs in the optimizer's post-step hook
        averaged = member.average()   # state dict of the averaged model

Importing the package is cheap; torch is imported when one of its names is first used, so that the
coordinator can run where there is none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from washp2p.connection import Connection
    from washp2p.joining import attach, connect, follow, join
    from washp2p.member import Member
    from washp2p.replicas import Replica

__all__ = ["Connection", "Member", "Replica", "attach", "connect", "follow", "join"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'washp2p' has no attribute {name!r}")
    module = {"Connection": "connection", "Member": "member", "Replica": "replicas"}.get(
        name, "joining"
    )
    return getattr(import_module(f"washp2p.{module}"), name)
