"""Checksums of arrays that do not depend on how the arrays are sharded.

In come arrays on any devices in any layout; out comes one 64-bit number each, as 16 hexadecimal
digits. The same values give the same number on one device and on a pod, so a number computed on
the devices before a save can be checked on other devices after a restore.

How it works. Every element is read as one or more words of 32 bits. A word and its position in the
array are mixed into two lanes of 32 bits, and each lane is summed over all words modulo 2^32.
Integer sums do not depend on their order, so neither on the sharding.

What it detects, and why:

- *One changed word* (one flipped bit, or any change inside one 32-bit word): always. For a fixed
  position every step of the mix (exclusive or with a key, multiplication by an odd number, x ^ x>>n)
  can be undone, so another word gives another term and another sum.
- *Swapped elements, rows or blocks*: the key of a position is a multiple of its index, and no two
  positions share the keys of both lanes (see `_keys`), so a word contributes differently at each
  position. The sums stay the same only by chance, about 2^-64 for the two lanes.
- *Any other damage* (zeroed chunks, stale data, many flips): missed with a chance of about 2^-64.

It guards against accidents, not against somebody who forges one. Shape and dtype are not part of
the number; a checkpoint records and compares them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maxlm.errors import CheckpointError

# Started on the devices, not yet read: names and their lanes, uint32 [names, 2].
Pending = Sequence[tuple[list[str], jax.Array]]

_MASK = 0xFFFFFFFF
# How many positions one key index can count; tests lower it to see several.
_INNER_LIMIT = 1 << 32
# Multipliers with well-spread bits (golden ratio, xxHash, murmur3, lowbias32). All are odd except
# the second of _OUTER, which must be even: see `_keys`.
_INNER = (0x9E3779B1, 0x85EBCA77)
_OUTER = (0xC2B2AE3D, 0x27D4EB2E)
_SEED = (0x165667B1, 0xD3A2646C)
_MIX = (0x21F0AAAD, 0x735A2D97, 0xCC9E2D51)


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Return the checksum of every array; waits for the devices."""
    return read_checksums(dispatch_checksums(arrays))[0]


def dispatch_checksums(arrays: Mapping[str, jax.Array]) -> Pending:
    """Start computing checksums on the devices and return without waiting.

    One program runs per set of devices (one in all for a train state). The arrays may be donated
    to another program right after. `read_checksums` waits for the result. All processes that own
    a part of the arrays must call this together.

    Raises CheckpointError for a dtype that has no words of 1, 2, 4 or 8 bytes (random keys, int4).
    """
    groups: dict[Any, list[str]] = {}
    # Sorted, so that a save, a restore and `compile_checksums` share one compiled program.
    for name, array in sorted(arrays.items()):
        _word_dtype(name, array.dtype)
        groups.setdefault(frozenset(array.sharding.device_set), []).append(name)
    pending = []
    for names in groups.values():
        members = [arrays[name] for name in names]
        pending.append((names, _program(_replicated(members))(members)))
    return pending


def read_checksums(pending: Pending) -> tuple[dict[str, str], list[str]]:
    """Wait for `dispatch_checksums`.

    Returns:
        name -> 16 hexadecimal digits, as this process's first device computed them; and the names
        of arrays whose replicas on this process's devices differ from one another.
    """
    result: dict[str, str] = {}
    torn: set[str] = set()
    for names, lanes in pending:
        copies = [np.asarray(shard.data).tolist() for shard in lanes.addressable_shards]
        for position, name in enumerate(names):
            first, second = copies[0][position]
            result[name] = f"{first:08x}{second:08x}"
            if any(copy[position] != copies[0][position] for copy in copies):
                torn.add(name)
    return result, sorted(torn)


def compile_checksums(targets: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Compile the program for arrays of these shapes, dtypes and shardings, ahead of the first use.

    The compiled program lands in jax's in-process cache of `dispatch_checksums`; safe to call from
    a background thread.
    """
    members = [target for _, target in sorted(targets.items())]
    if members:
        _program(_replicated(members)).lower(members).compile()


def checksum_on_host(array: np.ndarray) -> str:
    """The same number from a host array by NumPy alone: no device, no compilation.

    Some ten times slower than the device program. It is an independent check of that program, and
    serves dtypes that jax would narrow (float64 without x64).
    """
    array = np.asarray(array)
    _word_dtype("array", array.dtype)
    words = _host_words(array)
    inner_count = max(1, math.prod(words.shape[_split(words.shape) :]))
    flat = words.reshape(-1)
    sums = [0, 0]
    chunk = 1 << 18  # small enough to stay in the processor's cache
    for start in range(0, flat.size, chunk):
        part = flat[start : start + chunk]
        position = np.arange(start, start + part.size, dtype=np.uint64)
        inner = (position % np.uint64(inner_count)).astype(np.uint32)
        outer = (position // np.uint64(inner_count)).astype(np.uint32)
        with np.errstate(over="ignore"):
            mixed = _mix(part.astype(np.uint32), *_keys(inner, outer, np.uint32))
        for lane in (0, 1):
            sums[lane] = (sums[lane] + int(mixed[lane].sum(dtype=np.uint64))) & _MASK
    return f"{sums[0]:08x}{sums[1]:08x}"


@lru_cache(maxsize=8)
def _program(out_sharding: NamedSharding | None) -> Any:
    def checksum_lanes(arrays: list[jax.Array]) -> jax.Array:  # uint32 [arrays, 2]
        return jnp.stack([_lanes(array) for array in arrays])

    return jax.jit(checksum_lanes, out_shardings=out_sharding)


def _replicated(arrays: Sequence[Any]) -> NamedSharding | None:
    # Every process must be able to read the result, so it is replicated over the arrays' mesh.
    for array in arrays:
        if isinstance(array.sharding, NamedSharding):
            return NamedSharding(array.sharding.mesh, PartitionSpec())
    return None


@jax.jit  # traced once for all arrays of a shape: a parameter's moments have its own
def _lanes(array: jax.Array) -> jax.Array:
    words = _device_words(array)
    split = _split(words.shape)
    inner = _index(words.shape, range(split, words.ndim))
    outer = _index(words.shape, range(split))
    mixed = _mix(words, *_keys(inner, outer, jnp.uint32))
    # One reduction over both lanes: XLA's CPU backend runs it seven times faster than two sums
    # (9.7 against 1.4 GB/s), because two would write the mixed words out first.
    zero = jnp.uint32(0)
    return jnp.stack(
        jax.lax.reduce(
            mixed, (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), tuple(range(words.ndim))
        )
    )


def _index(shape: tuple[int, ...], dims: range) -> jax.Array:
    """Row-major index over `dims` at every position; uint32, broadcast to `shape`."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for dim in reversed(dims):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride & _MASK)
        stride *= shape[dim]
    return index


def _split(shape: tuple[int, ...]) -> int:
    """First dim of the longest tail of dims whose positions a uint32 can count.

    A position is then the pair (outer index, inner index), neither of which overflows. (A single
    dim of more than 2^32 would wrap; jax itself has no such arrays.)
    """
    split = len(shape)
    count = 1
    while split > 0 and (count * shape[split - 1] <= _INNER_LIMIT or split == len(shape)):
        split -= 1
        count *= shape[split]
    return split


def _keys(inner: Any, outer: Any, uint32: Any) -> tuple[Any, Any]:
    """Two keys for a position; no two positions share both.

    If two positions shared both keys, their differences d (inner) and e (outer) would satisfy
    d I0 + e O0 = 0 and d I1 + e O1 = 0 modulo 2^32. I0 and I1 are odd, so they have inverses:
    e (O0/I0 - O1/I1) = 0. O0 is odd and O1 even, so the bracket is odd: e = 0, and then d = 0.
    """
    first = inner * uint32(_INNER[0]) + outer * uint32(_OUTER[0]) + uint32(_SEED[0])
    second = inner * uint32(_INNER[1]) + outer * uint32(_OUTER[1]) + uint32(_SEED[1])
    return first, second


def _mix(words: Any, first_key: Any, second_key: Any) -> tuple[Any, Any]:
    """Two lanes from a word and its keys; for fixed keys each is a bijection of the word.

    Written with operators only, so that NumPy and jax arrays share it.
    """
    m0, m1, m2 = (words.dtype.type(m) for m in _MIX)
    x = words ^ first_key
    x = (x ^ (x >> 16)) * m0
    x = (x ^ (x >> 15)) * m1
    x = x ^ (x >> 15)
    y = x + second_key
    y = (y ^ (y >> 15)) * m2
    y = y ^ (y >> 14)
    return x, y


def _word_dtype(name: str, dtype: Any) -> type:
    """Unsigned type of an element's words. Raises CheckpointError when there is none."""
    sub_byte = any(mark in str(dtype) for mark in ("int4", "int2", "float4", "int1_"))
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or sub_byte:
        raise CheckpointError(
            f"array '{name}' has dtype {dtype}, which checkpoints do not store; "
            "save random keys as jax.random.key_data and packed integers as int8"
        )
    return {1: np.uint8, 2: np.uint16}.get(np.dtype(dtype).itemsize, np.uint32)


def _device_words(array: jax.Array) -> jax.Array:
    """Elements as uint32; elements of 8 and 16 bytes get further dims of 2, low word first."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, _word_dtype("array", array.dtype))
    return words.astype(jnp.uint32)


def _host_words(array: np.ndarray) -> np.ndarray:
    """Elements as unsigned words of 1, 2 or 4 bytes; larger elements get a last dim of words."""
    word = np.dtype(_word_dtype("array", array.dtype))
    per_element = array.dtype.itemsize // word.itemsize
    shape = array.shape if per_element == 1 else (*array.shape, per_element)
    return np.ascontiguousarray(array).reshape(-1).view(word).reshape(shape)
