"""Opens a member's data plane: one transport, or several wires behind one."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.transports.locality import near_address
from washp2p.transports.memory import MemoryTransport
from washp2p.transports.nearest import NearestTransport
from washp2p.transports.torch_p2p import TorchTransport
from washp2p.transports.zeromq import ZeromqTransport

if TYPE_CHECKING:
    import torch

    from washp2p.protocol.patience import Patience
    from washp2p.transports.base import Credentials, Transport

INTERFACE = "NCCL_SOCKET_IFNAME"

_log = logging.getLogger("washp2p")


def listen_as(
    bind: str,
    *,
    wires: str,
    device: torch.device,
    patience: Patience,
    credentials: Credentials | None,
    largest: int,
    bounded: bool,
) -> Transport:
    """Open the transport of a member whose values are on `device`.

    It listens by ZeroMQ at `bind` (`tcp://HOST:PORT`), encrypted with `credentials`. `wires` is the
    value of `--transport`. All values but "tcp" add a socket for peers on this machine. "torch",
    and "auto" on a GPU, add `torch.distributed` where possible. That needs plain text, an NCCL that
    is told to keep to loopback (on a GPU), and `bounded`: no member may skip rounds. Messages of
    more than `largest` bytes are refused. Raises UsageError if it cannot listen at `bind`.
    """
    near_by = near_address() if wires != "tcp" else ""
    wide = ZeromqTransport(bind, patience, credentials, near_by, largest)
    if wires == "tcp" or (wires == "auto" and device.type != "cuda"):
        return wide
    level = logging.WARNING if wires == "torch" else logging.INFO
    without = "this member does without torch.distributed: %s"
    if credentials is not None:
        _log.log(level, without, "it cannot encrypt")
    elif device.type == "cuda" and os.environ.get(INTERFACE) != "lo":
        _log.log(level, without, f"NCCL would listen off loopback; {INTERFACE}=lo")
    elif not bounded:
        _log.log(level, without, "--max-delay none lets rounds be skipped")
    else:
        try:
            near = TorchTransport(f"torch://127.0.0.1:*/{device}", patience, None, "", largest)
        except UsageError as error:
            _log.log(level, without, error)
        else:
            return NearestTransport(wide, near, patience)
    return wide


SCHEMES: dict[str, type[MemoryTransport | TorchTransport | ZeromqTransport]] = {
    "tcp": ZeromqTransport,
    "ipc": ZeromqTransport,
    "torch": TorchTransport,
    "memory": MemoryTransport,
}


def listen(
    address: str,
    patience: Patience | None = None,
    credentials: Credentials | None = None,
    *,
    near: str = "",
    largest: int = -1,
) -> Transport:
    """A transport that listens at `address`. `patience` says when a silent connection is broken.

    Transports that can listen at two addresses also listen at `near`. With `credentials`,
    connections are encrypted and open to peers only. Messages of more than `largest` bytes, header
    included, are refused (-1: no limit). Raises UsageError for an unknown scheme or address.
    """
    scheme = address.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(
            f"{address!r} has no known transport; expected one of "
            + ", ".join(f"{known}://" for known in SCHEMES)
        )
    return SCHEMES[scheme](address, patience, credentials, near, largest)
