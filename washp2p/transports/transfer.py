"""State transfer: named blobs of bytes, fetched from a peer in chunks with checksums.

The initial state, a newcomer's snapshot and averages all use it. A blob is served straight from the
memory it was offered from, and lands straight in the memory it was fetched into. A request for a
blob that is not offered yet waits until it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from washp2p.protocol.messages.frames import Chunk, Fetch, checksum, headers
from washp2p.protocol.refusals import Reason

if TYPE_CHECKING:
    from washp2p.protocol.ledger import Kind
    from washp2p.protocol.refusals import Refusals
    from washp2p.protocol.roster import MemberId
    from washp2p.transports.base import Buffer, Transport

CHUNK_BYTES = 1 << 20
AHEAD = 4
"""Chunks asked for and not yet received, per download."""
EARLY = 64
"""Requests of one peer that may wait for blobs to be offered."""
SERVED = 8
"""Requests of one peer for each chunk, on average, that are answered.

Links break and downloads begin anew, so one request is not enough.
"""


@dataclass
class Download:
    """A peer's blob, or a part of it, on its way into `into`.

    The caller owns `into`. If it is None, memory is made once the blob's size is known, at most
    `limit` bytes. `asked` and `received` count bytes. `awaited` has the length of each chunk
    that is to come, by offset.
    """

    peer: MemberId
    name: str
    offset: int
    into: memoryview | None
    kind: Kind
    limit: int = 0
    asked: int = 0
    received: int = 0
    awaited: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every byte has arrived and its checksum was right."""
        return self.into is not None and self.received == self.into.nbytes


class Transfer:
    """Both ends of state transfer for one member. Never blocks."""

    def __init__(
        self, transport: Transport, run: bytes, me: MemberId, refusals: Refusals[MemberId]
    ) -> None:
        self.refusals = refusals
        """Counts the messages that were refused."""
        self._transport = transport
        self._run = run
        self._me = me
        self._blobs: dict[str, tuple[memoryview, Kind]] = {}
        self._early: defaultdict[MemberId, list[Fetch]] = defaultdict(list)
        self._served: Counter[tuple[MemberId, str]] = Counter()
        self._downloads: dict[tuple[MemberId, str], Download] = {}
        self._superfluous: Counter[tuple[MemberId, str, int]] = Counter()
        """How many copies of a chunk may yet come that are not awaited.

        A chunk comes twice if it was asked for again. It comes unawaited after a `cancel`.
        """

    def offer(self, name: str, data: memoryview, kind: Kind) -> None:
        """Serve `data` as the blob `name`. It must not change until withdrawn."""
        self._blobs[name] = (data, kind)
        for peer, early in list(self._early.items()):
            self._early[peer] = [fetch for fetch in early if fetch.name != name]
            for fetch in early:
                if fetch.name == name:
                    self.on_fetch(fetch)

    def withdraw(self, prefix: str) -> None:
        """Stop serving blobs whose names begin with `prefix`."""
        self._blobs = {k: v for k, v in self._blobs.items() if not k.startswith(prefix)}
        for pair in [pair for pair in self._served if pair[1].startswith(prefix)]:
            del self._served[pair]

    def fetch(
        self,
        peer: MemberId,
        name: str,
        into: memoryview | None,
        *,
        kind: Kind,
        offset: int = 0,
        limit: int = 0,
    ) -> Download:
        """Begin to fill `into` with the peer's blob `name`, from byte `offset` on.

        If `into` is None, the whole blob is fetched into new memory, at most `limit` bytes.
        """
        download = Download(peer, name, offset, into, kind, limit)
        if not download.done:
            self._downloads[peer, name] = download
            for _ in range(AHEAD if into is not None else 1):
                self._ask(download)
        return download

    def cancel(self) -> None:
        """Give up all downloads. Chunks that were asked for may still come."""
        for (peer, name), download in self._downloads.items():
            self._superfluous.update((peer, name, offset) for offset in download.awaited)
        self._downloads.clear()

    def forget(self, peer: MemberId) -> None:
        """Drop the requests of a peer that is gone."""
        self._early.pop(peer, None)
        for pair in [pair for pair in self._served if pair[0] == peer]:
            del self._served[pair]
        for chunk in [chunk for chunk in self._superfluous if chunk[0] == peer]:
            del self._superfluous[chunk]

    def again(self, peer: MemberId) -> None:
        """Ask `peer` again for missing chunks, because a connection to or from it was broken."""
        for download in self._downloads.values():
            if download.peer == peer:
                for offset, length in download.awaited.items():
                    self._superfluous[peer, download.name, offset] += 1
                    self._request(download, offset, length)

    def peers(self) -> set[MemberId]:
        """The peers from which something is still to come."""
        return {peer for peer, _ in self._downloads}

    def on_fetch(self, fetch: Fetch) -> None:
        """Answer a peer's request, keep it until the blob is offered, or refuse it."""
        if fetch.name not in self._blobs:
            early = self._early[fetch.sender]
            if len(early) == EARLY:
                self._refuse(early.pop(0), Reason.REQUEST, f"at most {EARLY} wait for a blob")
            early.append(fetch)
            return
        data, kind = self._blobs[fetch.name]
        self._served[fetch.sender, fetch.name] += 1
        asked = self._served[fetch.sender, fetch.name]
        if fetch.length > CHUNK_BYTES or fetch.offset > data.nbytes:
            self._refuse(
                fetch, Reason.REQUEST, f"it has {data.nbytes}; expected at most {CHUNK_BYTES} of it"
            )
            return
        if asked > SERVED * (AHEAD + data.nbytes // CHUNK_BYTES):
            self._refuse(fetch, Reason.REQUEST, f"for the {asked}th time")
            return
        part = data[fetch.offset : fetch.offset + fetch.length]
        to, at, size = fetch.sender, fetch.offset, data.nbytes
        header = Chunk(self._run, self._me, to, fetch.name, at, size, checksum(part))
        self._transport.send(to, kind, headers.encode(header), (part,))

    def on_chunk(self, chunk: Chunk, payload: Buffer) -> None:
        """Take a peer's answer. An answer to no request is refused."""
        download = self._downloads.get((chunk.sender, chunk.name))
        if download is None or chunk.offset not in download.awaited:
            asked = chunk.sender, chunk.name, chunk.offset
            if self._superfluous[asked] > 1:
                self._superfluous[asked] -= 1
            elif self._superfluous.pop(asked, 0) == 0:
                self._refuse(chunk, Reason.UNASKED, "nobody waits for it")
            return
        awaited = download.awaited[chunk.offset]
        length = min(awaited, max(0, chunk.size - chunk.offset))
        if payload.nbytes != length or not _fits(download, chunk):
            what = f"{payload.nbytes} bytes of {chunk.size}; expected {awaited} of at most "
            most = download.limit if download.into is None else download.into.nbytes
            self._refuse(chunk, Reason.LENGTH, f"{what}{most}")
            return
        if checksum(payload) != chunk.checksum:
            self._refuse(chunk, Reason.CHECKSUM, "asked for again")
            self._request(download, chunk.offset, awaited)
            return
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

    def _refuse(self, header: Fetch | Chunk, reason: Reason, detail: str) -> None:
        kind, at = type(header).__name__, f"{header.name} at {header.offset}"
        what = f"{kind} of {at} from member {header.sender}: {detail}"
        self.refusals.refuse(header.sender, reason, what)

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
        header = Fetch(self._run, self._me, download.peer, download.name, offset, length)
        self._transport.send(download.peer, download.kind, headers.encode(header))


def _fits(download: Download, chunk: Chunk) -> bool:
    """Whether the peer's blob has the wanted part or, if all is wanted, is within the limit."""
    if download.into is None:
        return chunk.size <= download.limit
    return chunk.size >= download.offset + download.into.nbytes
