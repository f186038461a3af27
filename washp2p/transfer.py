"""State transfer: named blobs of bytes, fetched from a peer in checksummed chunks.

One protocol for the initial state, the final average and whatever a later joiner needs. A blob is
served straight from the memory it was offered from and lands straight in the memory it is wanted
in. A request for a blob not offered yet waits until it is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from washp2p.errors import ProtocolError
from washp2p.frames import Chunk, Fetch, checksum, headers

if TYPE_CHECKING:
    from washp2p.ledger import Kind
    from washp2p.rounds import MemberId
    from washp2p.transports import Buffer, Transport

CHUNK_BYTES = 1 << 20
AHEAD = 4
"""Chunks asked for and not yet received, per download."""


@dataclass
class Download:
    """A part of a peer's blob on its way into `into`, which the caller owns."""

    peer: MemberId
    name: str
    offset: int
    into: memoryview
    kind: Kind
    asked: int = 0
    received: int = 0
    awaited: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every byte has arrived and its checksum was right."""
        return self.received == self.into.nbytes


class Transfer:
    """Both ends of state transfer for one member. Never blocks."""

    def __init__(self, transport: Transport, run: bytes, me: MemberId) -> None:
        self._transport = transport
        self._run = run
        self._me = me
        self._blobs: dict[str, tuple[memoryview, Kind]] = {}
        self._early: defaultdict[str, list[Fetch]] = defaultdict(list)
        self._downloads: dict[tuple[MemberId, str], Download] = {}

    def offer(self, name: str, data: memoryview, kind: Kind) -> None:
        """Serve `data` as the blob `name`; it must not change until withdrawn."""
        self._blobs[name] = (data, kind)
        for fetch in self._early.pop(name, []):
            self.on_fetch(fetch)

    def withdraw(self, prefix: str) -> None:
        """Serve no blob whose name begins with `prefix` any longer."""
        self._blobs = {k: v for k, v in self._blobs.items() if not k.startswith(prefix)}

    def fetch(
        self, peer: MemberId, name: str, into: memoryview, *, kind: Kind, offset: int = 0
    ) -> Download:
        """Begin to fill `into` with the peer's blob `name` from byte `offset` on."""
        download = Download(peer, name, offset, into, kind)
        self._downloads[peer, name] = download
        for _ in range(AHEAD):
            self._ask(download)
        return download

    def on_fetch(self, fetch: Fetch) -> None:
        """A peer asks. Raises ProtocolError if it asks for what is not there."""
        if fetch.name not in self._blobs:
            self._early[fetch.name].append(fetch)
            return
        data, kind = self._blobs[fetch.name]
        if fetch.length > CHUNK_BYTES or fetch.offset + fetch.length > data.nbytes:
            raise ProtocolError(
                f"member {fetch.sender} asked for {fetch.length} bytes at {fetch.offset} of "
                f"{fetch.name}, which has {data.nbytes}; expected at most {CHUNK_BYTES} within it"
            )
        part = data[fetch.offset : fetch.offset + fetch.length]
        header = Chunk(self._run, self._me, fetch.name, fetch.offset, checksum(part))
        self._transport.send(fetch.sender, kind, headers.encode(header), (part,))

    def on_chunk(self, chunk: Chunk, payload: Buffer) -> None:
        """A peer answers. Raises ProtocolError if it is not what was asked for."""
        download = self._downloads.get((chunk.sender, chunk.name))
        if download is None or payload.nbytes != download.awaited.get(chunk.offset):
            raise ProtocolError(
                f"member {chunk.sender} sent {payload.nbytes} bytes at {chunk.offset} of "
                f"{chunk.name}, which nobody asked for"
            )
        if checksum(payload) != chunk.checksum:
            raise ProtocolError(
                f"{payload.nbytes} bytes at {chunk.offset} of {chunk.name} from member "
                f"{chunk.sender} do not match their checksum"
            )
        at = chunk.offset - download.offset
        download.into[at : at + payload.nbytes] = payload
        download.received += download.awaited.pop(chunk.offset)
        if download.done:
            del self._downloads[chunk.sender, chunk.name]
        else:
            self._ask(download)

    def _ask(self, download: Download) -> None:
        length = min(CHUNK_BYTES, download.into.nbytes - download.asked)
        if not length:
            return
        offset = download.offset + download.asked
        download.asked += length
        download.awaited[offset] = length
        header = Fetch(self._run, self._me, download.name, offset, length)
        self._transport.send(download.peer, download.kind, headers.encode(header))
