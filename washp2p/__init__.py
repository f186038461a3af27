"""Train an ensemble peer to peer, end with one averaged model.

>>> import torch, washp2p
>>> model = torch.nn.Linear(8, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> with washp2p.join(address, model, optimizer) as member:  # the coordinator's: tcp://HOST:PORT
...     for inputs, targets in loader:
...         loss = torch.nn.functional.cross_entropy(model(inputs), targets)
...         optimizer.zero_grad()
...         loss.backward()
...         optimizer.step()  # a round follows, in the optimizer's post-step hook
...     averaged = member.average()
>>> list(averaged)  # the state dict of the averaged model
['weight', 'bias']

Importing the package is cheap, because it does not import torch. Torch is imported when a name that
needs it is first used. So the coordinator can run where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from washp2p.config.config import RunConfig
    from washp2p.coordinator_link.connection import Connection
    from washp2p.driver.joining import attach, connect, follow, join
    from washp2p.driver.member import Member
    from washp2p.driver.replicas import Replica
    from washp2p.protocol.layout import Layout
    from washp2p.protocol.ledger import Ledger

__all__ = [
    "Connection",
    "Layout",
    "Ledger",
    "Member",
    "Replica",
    "RunConfig",
    "attach",
    "connect",
    "follow",
    "join",
]
_WHERE = {
    "Connection": "coordinator_link.connection",
    "Layout": "protocol.layout",
    "Ledger": "protocol.ledger",
    "Member": "driver.member",
    "Replica": "driver.replicas",
    "RunConfig": "config.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'washp2p' has no attribute {name!r}")
    return getattr(import_module(f"washp2p.{_WHERE.get(name, 'driver.joining')}"), name)
