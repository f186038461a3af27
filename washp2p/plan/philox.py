"""Random words: the raw output of Philox4x64-10, keyed by a round's seed.

A plan has no other source of randomness. NumPy guarantees these words in all its builds. It does
not guarantee the methods of its `Generator`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

BLOCK = 1 << 14
"""Values handled at a time: they fit the cache, and the GIL is held for moments only."""


class PhiloxStreams:
    """The random streams of a round. One stream is read at a time.

    >>> words = PhiloxStreams()
    >>> words.begin(seed=5, stream=0)
    >>> first = words.take(2)
    >>> words.begin(seed=5, stream=0)
    >>> (words.take(2) == first).all()
    np.True_
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)

    def begin(self, seed: int, stream: int, substream: int = 0) -> None:
        """Begin the stream of key (seed, 0) and counter (0, 0, substream, stream)."""
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {
                "counter": np.array([0, 0, substream, stream], dtype=np.uint64),
                "key": np.array([seed, 0], dtype=np.uint64),
            },
            "buffer": np.zeros(4, dtype=np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def take(self, count: int) -> Words:
        """The next `count` words of the stream."""
        words: Words = self._philox.random_raw(count)
        return words

    def fill(self, out: Words) -> None:
        """Fill an array with the next words, block by block. Allocates no other large memory."""
        for begin in range(0, len(out), BLOCK):
            part = out[begin : begin + BLOCK]
            part[:] = self.take(len(part))

    def fill_halves(self, out: Words) -> None:
        """Fill an array with halves (32 bits) of the next words, the low half of a word first."""
        for begin in range(0, len(out), 2 * BLOCK):
            part = out[begin : begin + 2 * BLOCK]
            words = self.take((len(part) + 1) // 2).astype("<u8", copy=False)
            part[:] = words.view("<u4")[: len(part)]
