"""State transfer: named blobs of bytes, fetched from a peer in checksummed chunks.

One protocol for the initial state, a newcomer's snapshot and the final average. A blob is served
straight from the memory it was offered from and lands straight in the memory it is wanted in. A
request for a blob not offered yet waits until it is.
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
    """A part of a peer's blob on its way into `into`.

    The caller owns `into`; where it gave none, it is made when the blob's size is known.
    """

    peer: MemberId
    name: str
    offset: int
    into: memoryview | None
    kind: Kind
    asked: int = 0
    received: int = 0
    awaited: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every byte has arrived and its checksum was right."""
        return self.into is not None and self.received == self.into.nbytes


class Transfer:
    """Both ends of state transfer for one member. Never blocks."""

    def __init__(self, transport: Transport, run: bytes, me: MemberId) -> None:
        self._transport = transport
        self._run = run
        self._me = me
        self._blobs: dict[str, tuple[memoryview, Kind]] = {}
        self._early: defaultdict[str, list[Fetch]] = defaultdict(list)
        self._downloads: dict[tuple[MemberId, str], Download] = {}
        self.unasked = 0
        """Chunks that came twice, or after nobody wanted them any more."""

    def offer(self, name: str, data: memoryview, kind: Kind) -> None:
        """Serve `data` as the blob `name`; it must not change until withdrawn."""
        self._blobs[name] = (data, kind)
        for fetch in self._early.pop(name, []):
            self.on_fetch(fetch)

    def withdraw(self, prefix: str) -> None:
        """Serve no blob whose name begins with `prefix` any longer."""
        self._blobs = {k: v for k, v in self._blobs.items() if not k.startswith(prefix)}

    def fetch(
        self, peer: MemberId, name: str, into: memoryview | None, *, kind: Kind, offset: int = 0
    ) -> Download:
        """Begin to fill `into` with the peer's blob `name` from byte `offset` on.

        None takes the whole blob, whatever its size.
        """
        download = Download(peer, name, offset, into, kind)
        if not download.done:
            self._downloads[peer, name] = download
            for _ in range(AHEAD if into is not None else 1):
                self._ask(download)
        return download

    def cancel(self) -> None:
        """Want none of what is still being fetched any more."""
        self._downloads.clear()

    def again(self, peer: MemberId) -> None:
        """A link to or from `peer` was broken: ask again for what has not come."""
        for download in self._downloads.values():
            if download.peer == peer:
                for offset, length in download.awaited.items():
                    self._request(download, offset, length)

    def peers(self) -> set[MemberId]:
        """From whom something is still to come."""
        return {peer for peer, _ in self._downloads}

    def on_fetch(self, fetch: Fetch) -> None:
        """A peer asks. Raises ProtocolError if it asks for what is not there."""
        if fetch.name not in self._blobs:
            self._early[fetch.name].append(fetch)
            return
        data, kind = self._blobs[fetch.name]
        if fetch.length > CHUNK_BYTES or fetch.offset > data.nbytes:
            raise ProtocolError(
                f"member {fetch.sender} asked for {fetch.length} bytes at {fetch.offset} of "
                f"{fetch.name}, which has {data.nbytes}; expected at most {CHUNK_BYTES} within it"
            )
        part = data[fetch.offset : fetch.offset + fetch.length]
        header = Chunk(self._run, self._me, fetch.name, fetch.offset, data.nbytes, checksum(part))
        self._transport.send(fetch.sender, kind, headers.encode(header), (part,))

    def on_chunk(self, chunk: Chunk, payload: Buffer) -> None:
        """A peer answers; what nobody waits for is ignored.

        Raises ProtocolError if it is not what was asked for.
        """
        download = self._downloads.get((chunk.sender, chunk.name))
        if download is None or chunk.offset not in download.awaited:
            self.unasked += 1
            return
        length = min(download.awaited[chunk.offset], max(0, chunk.size - chunk.offset))
        if payload.nbytes != length or (download.into is not None and _short(download, chunk)):
            raise ProtocolError(
                f"member {chunk.sender} sent {payload.nbytes} bytes at {chunk.offset} of "
                f"{chunk.name}, which has {chunk.size}; expected {download.awaited[chunk.offset]}"
            )
        if checksum(payload) != chunk.checksum:
            raise ProtocolError(
                f"{payload.nbytes} bytes at {chunk.offset} of {chunk.name} from member "
                f"{chunk.sender} do not match their checksum"
            )
        del download.awaited[chunk.offset]
        if download.into is None:
            download.into = memoryview(bytearray(chunk.size))
            download.asked = length
            for _ in range(AHEAD - 1):
                self._ask(download)
        at = chunk.offset - download.offset
        download.into[at : at + length] = payload
        download.received += length
        if download.done:
            del self._downloads[chunk.sender, chunk.name]
        else:
            self._ask(download)

    def _ask(self, download: Download) -> None:
        left = CHUNK_BYTES if download.into is None else download.into.nbytes - download.asked
        length = min(CHUNK_BYTES, left)
        if not length:
            return
        offset = download.offset + download.asked
        download.asked += length
        download.awaited[offset] = length
        self._request(download, offset, length)

    def _request(self, download: Download, offset: int, length: int) -> None:
        header = Fetch(self._run, self._me, download.name, offset, length)
        self._transport.send(download.peer, download.kind, headers.encode(header))


def _short(download: Download, chunk: Chunk) -> bool:
    """Whether the peer's blob ends before what is wanted of it does."""
    assert download.into is not None
    return chunk.size < download.offset + download.into.nbytes
