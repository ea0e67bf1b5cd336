"""The order of a source's rows: for every epoch a seeded permutation, computed and never stored.

In comes the ordinal of a row (how many rows of the source came before it, over all epochs); out
goes the row's index within the source. Epoch `ordinal // num_rows` has its own permutation, a
Feistel network over the pairs (i, j) of a grid of about √n × √n: each round adds to one coordinate
a keyed hash of the other, which can be undone and is therefore a bijection; the few grid points
beyond `num_rows` are walked through (the network is applied again until it lands inside). The cost
per row does not depend on the ordinal or on the size of the source, and a whole batch is computed
at once. Written out here and not taken from a library, so that no update of one can change the
order in which a run continues; a test pins it.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np

ORDER_VERSION = 1  # raise when the same (seed, source, ordinal) no longer gives the same row

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_SHIFT_HALF = np.uint64(32)


class EpochOrder:
    """Permutation of the rows of one source, another one for every epoch."""

    def __init__(self, num_rows: int, seed: int, name: str):
        """Order `num_rows` rows; `seed` and the source's `name` make the key."""
        if num_rows < 1:
            raise ValueError(f"an order needs at least one row, got {num_rows}")
        self.num_rows = num_rows
        digest = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest()
        self._key = np.uint64(int.from_bytes(digest, "little"))
        self._height = isqrt(num_rows - 1) + 1
        self._width = -(-num_rows // self._height)

    def __call__(self, ordinals: np.ndarray) -> np.ndarray:
        """Row index in `[0, num_rows)` of each ordinal. int64 `[n]` → int64 `[n]`."""
        if self.num_rows == 1 or not len(ordinals):
            return np.zeros(len(ordinals), np.int64)
        epochs, within = np.divmod(np.asarray(ordinals, np.int64), self.num_rows)
        one_epoch = epochs[0] == epochs[-1] and bool((epochs == epochs[0]).all())
        keys = self._round_keys(epochs[:1] if one_epoch else epochs)
        rows = self._network(within.astype(np.uint64), keys)
        outside = np.flatnonzero(rows >= self.num_rows)
        while len(outside):
            walked = self._network(rows[outside], keys if one_epoch else keys[:, outside])
            rows[outside] = walked
            outside = outside[walked >= self.num_rows]
        return rows.astype(np.int64)

    def _round_keys(self, epochs: np.ndarray) -> np.ndarray:
        """uint64 `[rounds, len(epochs)]`."""
        numbers = epochs.astype(np.uint64) * np.uint64(_ROUNDS)
        rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)
        return _mix(self._key + (numbers + rounds[:, None]) * _GOLDEN)

    def _network(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """One pass over the grid: uint64 `[n]` in `[0, height × width)` to the same range."""
        height, width = np.uint64(self._height), np.uint64(self._width)
        down, across = values // width, values % width
        for number in range(_ROUNDS):
            if number % 2 == 0:
                down = _add(down, _hash_below(across, keys[number], height), height)
            else:
                across = _add(across, _hash_below(down, keys[number], width), width)
        return down * width + across


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit over all 64 (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_A
    values = (values ^ (values >> np.uint64(27))) * _MIX_B
    return values ^ (values >> np.uint64(31))


def _hash_below(values: np.ndarray, key: np.ndarray, bound: np.uint64) -> np.ndarray:
    """Keyed hash of each value, scaled to `[0, bound)`; `bound` is under 2³²."""
    values = (values ^ key) * _MIX_A
    values ^= values >> _SHIFT_HALF
    values *= _MIX_B
    values >>= _SHIFT_HALF
    values *= bound
    values >>= _SHIFT_HALF
    return values


def _add(left: np.ndarray, right: np.ndarray, modulus: np.uint64) -> np.ndarray:
    """Sum modulo `modulus` of two arrays that are below it."""
    total = left + right
    return np.where(total >= modulus, total - modulus, total)
