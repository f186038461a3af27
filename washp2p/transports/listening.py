"""Where a member's data plane listens: by which wires its peers can reach it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from washp2p.errors import UsageError
from washp2p.transports import (
    Credentials,
    NearestTransport,
    TorchTransport,
    ZeromqTransport,
)
from washp2p.transports.locality import near_address

if TYPE_CHECKING:
    import torch

    from washp2p.coordinator_link.connection import Connection
    from washp2p.sockets.keys import KeyPair
    from washp2p.transports import Transport

INTERFACE = "NCCL_SOCKET_IFNAME"

_log = logging.getLogger("washp2p")


def listen_as(
    connection: Connection, bind: str, keys: KeyPair, device: torch.device, largest: int
) -> Transport:
    """A member's transport, its values being on `device`.

    By ZeroMQ at `bind` (`tcp://HOST:PORT`), encrypted if the run has keys; but for `--transport
    tcp` at its place, too. By `torch.distributed` where that is asked for, and between GPUs: in
    plain text only, and where rounds are bound to each other; NCCL only if it was told to keep to
    loopback. Takes no message of more than
    `largest` bytes. Raises UsageError.
    """
    config, patience = connection.config, connection.patience
    wide = ZeromqTransport(
        bind,
        patience,
        Credentials(keys, connection.member_of) if connection.encrypted else None,
        near_address() if config.transport != "tcp" else "",
        largest,
    )
    if config.transport == "tcp" or (config.transport == "auto" and device.type != "cuda"):
        return wide
    level = logging.WARNING if config.transport == "torch" else logging.INFO
    without = "member %d does without torch.distributed: %s"
    if connection.encrypted:
        _log.log(level, without, connection.member, "it cannot encrypt")
    elif device.type == "cuda" and os.environ.get(INTERFACE) != "lo":
        _log.log(
            level, without, connection.member, f"NCCL would listen off loopback; {INTERFACE}=lo"
        )
    elif config.max_delay == "none":
        _log.log(level, without, connection.member, "--max-delay none lets rounds be skipped")
    else:
        try:
            near = TorchTransport(f"torch://127.0.0.1:*/{device}", patience, None, "", largest)
        except UsageError as error:
            _log.log(level, without, connection.member, error)
        else:
            return NearestTransport(wide, near, patience)
    return wide
