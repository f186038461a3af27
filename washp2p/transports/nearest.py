"""Several wires behind one transport: each peer is reached by the nearest wire that both ends
have.

`torch.distributed` may reach peers at the same place; ZeroMQ reaches every peer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from washp2p.transports.base import Message, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.patience import Patience
    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffers
    from washp2p.transports.torch_p2p import TorchTransport
    from washp2p.transports.zeromq import ZeromqTransport

_log = logging.getLogger("washp2p")


@dataclass(frozen=True)
class _Near:
    """A peer that the near wire reaches: its key and addresses for ZeroMQ, if that wire fails."""

    key: bytes
    otherwise: Sequence[str]


class NearestTransport(Transport):
    """`torch.distributed` to peers that have such an address, ZeroMQ to all others.

    A peer whose near wire fails is reached by ZeroMQ. This transport owns both wires.
    """

    def __init__(self, wide: ZeromqTransport, near: TorchTransport, patience: Patience) -> None:
        self._wide = wide
        self._near = near
        self._patience = patience
        self.endpoint = wide.endpoint
        self.near = (near.endpoint, *wide.near)
        self.device = near.device
        self.ledger = near.ledger = wide.ledger
        self._nearby: dict[MemberId, _Near] = {}
        self._interrupting = Lock()
        near.on_arrival = self.interrupt

    def connect(
        self, peer: MemberId, endpoint: str, key: bytes = b"", otherwise: Sequence[str] = ()
    ) -> None:
        if endpoint.startswith("torch://"):
            self._near.connect(peer, endpoint)
            self._nearby[peer] = _Near(key, otherwise)
        else:
            self._wide.connect(peer, endpoint, key, otherwise)

    def disconnect(self, peer: MemberId) -> None:
        self._nearby.pop(peer, None)
        self._near.disconnect(peer)
        self._wide.disconnect(peer)

    def cut(self, peer: MemberId, key: bytes) -> None:
        self._nearby.pop(peer, None)
        self._near.cut(peer, key)
        self._wide.cut(peer, key)

    def broken(self, peer: MemberId) -> bool:
        return self._to(peer).broken(peer)

    def mended(self) -> list[MemberId]:
        """Peers whose connections work again, and peers that change to ZeroMQ in this call.

        A peer changes if the near wire has not reached it for one patience.
        """
        mended = self._near.mended() + self._wide.mended()
        for peer, near in list(self._nearby.items()):
            if self._near.down_for(peer) > self._patience.seconds and near.otherwise:
                self.disconnect(peer)
                self._wide.connect(peer, near.otherwise[0], near.key, near.otherwise[1:])
                _log.warning("member %d is not reached by torch.distributed; now by ZeroMQ", peer)
                mended.append(peer)
        return mended

    def direct(self, peer: MemberId) -> bool:
        return peer in self._nearby and self._near.direct(peer)

    def send(
        self,
        peer: MemberId,
        kind: Kind,
        header: bytes,
        buffers: Buffers = (),
        *,
        expected: int = 0,
    ) -> None:
        """Send by the peer's present wire. Tensors are lost if that wire is ZeroMQ by now."""
        to = self._to(peer)
        if to is self._near or all(isinstance(buffer, memoryview) for buffer in buffers):
            to.send(peer, kind, header, buffers, expected=expected)

    def receive(self, timeout: float | None = None) -> Message | None:
        return self._near.receive(0) or self._wide.receive(timeout) or self._near.receive(0)

    def interrupt(self) -> None:
        with self._interrupting:
            self._wide.interrupt()

    def close(self, linger: float = 0.0) -> None:
        self._near.close(linger)
        self._wide.close(linger)

    def _to(self, peer: MemberId) -> TorchTransport | ZeromqTransport:
        return self._near if peer in self._nearby else self._wide
