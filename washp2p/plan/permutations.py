"""Permutations of members: each selected scalar has its own, uniform and independent.

Of each permutation a member needs only two images: the member it takes a value from, and the member
it gives its own value to. All arithmetic is on integers, so all machines agree.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
import numpy.typing as npt

LARGEST_TABLE = 7  # members; a table of all N! permutations has 5,040 rows there
KEYED_ROUNDS = 24  # a position is still where it began with probability 2**-24

Words = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.unsignedinteger]

_WORD = 1 << 64
_HALF = np.uint64(32)
_BLOCK = 1 << 13  # values handled at a time: what fits the cache


def source_and_target(draws: Words, n: int, position: int) -> tuple[Positions, Positions]:
    """The images of `position` under each draw's permutation of `n`, and under its inverse.

    A draw is 32 random bits for n <= LARGEST_TABLE and 64 beyond. `draws` is used up: it is
    scratch memory afterwards.

    >>> draws = np.array([0, 1 << 31, (1 << 32) - 1], dtype=np.uint64)
    >>> [images.tolist() for images in source_and_target(draws, 3, position=0)]
    [[0, 1, 2], [0, 2, 2]]
    """
    if n > LARGEST_TABLE:
        source, target = keyed(draws, n, position)
        return source, target
    draws *= np.uint64(factorial(n))
    draws >>= _HALF
    numbers = draws.view(np.int64)
    forward, backward = _table(n, position)
    return forward.take(numbers, mode="clip"), backward.take(numbers, mode="clip")


@lru_cache(maxsize=64)
def _table(n: int, position: int) -> npt.NDArray[np.uint8]:
    """The images of `position` under all permutations, and under their inverses: shape (2, n!).

    Permutations are in lexicographic order.
    """
    forward = np.array(list(permutations(range(n))), dtype=np.uint8)
    return np.stack((forward[:, position], np.argmax(forward == position, axis=1).astype(np.uint8)))


def keyed(keys: Words, n: int, position: int) -> npt.NDArray[np.uint16]:
    """Where each key's permutation and its inverse take `position`: shape (2, number of keys).

    It is a swap-or-not shuffle (Hoang, Morris, Rogaway 2012). In each of its KEYED_ROUNDS rounds a
    coin decides whether x becomes k - x (mod n). k depends on the key and on the shuffle's round.
    The coin depends on both, and on the pair of x and k - x. Each of these rounds is its own
    inverse, so the inverse runs them backwards. The cost per value is independent of n.
    """
    result = np.empty((2, len(keys)), dtype=np.uint16)
    size = np.uint64(n)
    tweaks = np.array(
        [(number + 1) * 0x9E3779B97F4A7C15 % _WORD for number in range(KEYED_ROUNDS)],
        dtype=np.uint64,
    )
    for begin in range(0, len(keys), _BLOCK):
        block = keys[begin : begin + _BLOCK]
        x = np.full((2, len(block)), position, dtype=np.uint64)
        mixed, partner, coin, spare = (np.empty_like(x) for _ in range(4))
        for pair in zip(tweaks, tweaks[::-1], strict=True):
            np.add(block, np.array(pair)[:, None], out=mixed)
            _mix(mixed, spare)
            np.right_shift(mixed, _HALF, out=partner)
            partner *= size
            partner >>= _HALF
            partner += size
            partner -= x
            np.subtract(partner, size, out=spare)
            np.minimum(partner, spare, out=partner)  # modulo n: what is below 0 is very large
            np.maximum(x, partner, out=coin)
            coin += np.uint64(1)
            coin *= np.uint64(0xD1B54A32D192ED03)
            coin ^= mixed
            _mix(coin, spare)
            coin >>= np.uint64(63)
            partner -= x
            partner *= coin
            x += partner
        result[:, begin : begin + _BLOCK] = x
    return result


def _mix(z: Words, spare: Words) -> None:
    """The finaliser of splitmix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(z, np.uint64(shift), out=spare)
        z ^= spare
        z *= np.uint64(factor)
    np.right_shift(z, np.uint64(31), out=spare)
    z ^= spare
