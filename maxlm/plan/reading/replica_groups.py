"""Which devices a collective joins, and which mesh axes those are.

In: a collective's attributes and the mesh; out: groups of positions in the mesh and names of axes. A
compiled program numbers devices by their position in the mesh, outermost axis first (`use_global_device_ids`).
Groups are printed as lists, as a reshaped and transposed range, or as axes of a mesh of the compiler's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from maxlm.errors import PlanError

_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, *device_ids=\(([\d,]*|\[[\d,]+\](?:T\([\d,]+\))?)\))?\s*\{([^}]*)\}"
)
_DEVICES = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def read_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Positions of the devices, one group a row, `[groups, size]`.

    Of a permutation, rings that its pairs run through; those shorter than the longest are left out.

    Raises:
        PlanError: groups in a notation that is not known.
    """
    if match := _AXES.search(attributes):
        return _by_axes(match, attributes)
    if match := _RANGE.search(attributes):
        shape, dims = _numbers(match.group(1)), _numbers(match.group(2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match.group(3):
            ids = ids.transpose(_numbers(match.group(3)))
        return ids.reshape(shape)
    if match := _PAIRS.search(attributes):
        return _rings([_numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", match.group(1))])
    if match := _LISTED.search(attributes):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match.group(1))]
        longest = max((len(group) for group in groups), default=0)
        if longest:
            return np.array([group for group in groups if len(group) == longest])
    if "replica_groups=" not in attributes or match:
        return np.arange(num_devices)[None]  # none are named: all
    named = attributes[attributes.index("replica_groups=") :][:120]
    raise PlanError(f"cannot read which devices a collective joins: {named!r}")


def axes_of(groups: np.ndarray, axes: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the mesh axes along which groups lie; empty where they are not whole axes.

    Args:
        groups: `[groups, size]`.
        axes: name → size, outermost first.
    """
    sizes = tuple(axes.values())
    if not sizes or groups.size == 0 or groups.max() >= math.prod(sizes):
        return ()
    places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, size, axes]
    varies = (places != places[:, :1]).any(axis=1)  # [groups, axes]
    if not (varies == varies[0]).all():
        return ()
    names = [name for name, does in zip(axes, varies[0], strict=True) if does]
    whole = math.prod(axes[name] for name in names)
    return tuple(names) if whole == groups.shape[1] else ()


def is_across(groups: np.ndarray, slices: Sequence[int]) -> bool:
    """Whether any group has devices of several slices (`slices[position]`)."""
    if groups.size == 0 or groups.max() >= len(slices):
        return False
    found = np.asarray(slices)[groups]
    return bool((found != found[:, :1]).any())


def _by_axes(match: re.Match[str], attributes: str) -> np.ndarray:
    """`mesh['a'=4,'b'=16] {'b'}`; a part of an axis is written `'b':(2)4`, after 2 of it, 4.

    Devices may follow the mesh, as a list or as a range: `device_ids=([2,2]T(1,0))`.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match.group(1))}
    ids = np.arange(math.prod(sizes.values()))
    if match.group(2) and (written := _DEVICES.fullmatch(match.group(2))):
        ids = ids.reshape(_numbers(written.group(1)))
        ids = ids.transpose(_numbers(written.group(2))) if written.group(2) else ids
        ids = ids.reshape(-1)
    elif match.group(2):
        ids = np.array(_numbers(match.group(2)))
    dims: list[int] = []
    joined: list[int] = []
    chosen = dict(re.findall(r"'([^']+)'(:\(\d+\)\d+)?", match.group(3)))
    for name, size in sizes.items():
        part = re.match(r":\((\d+)\)(\d+)", chosen.get(name, ""))
        if part:
            before, taken = int(part.group(1)), int(part.group(2))
            joined.append(len(dims) + 1)
            dims += [before, taken, size // (before * taken)]
        else:
            if name in chosen:
                joined.append(len(dims))
            dims.append(size)
    if ids.size != math.prod(dims):
        raise PlanError(f"a collective's mesh does not hold its devices: {match.group()[:160]!r}")
    order = [d for d in range(len(dims)) if d not in joined] + joined
    size = math.prod(dims[d] for d in joined)
    return ids.reshape(dims).transpose(order).reshape(-1, max(size, 1))


def _rings(pairs: list[list[int]]) -> np.ndarray:
    """Chains of source → target, the longest only."""
    following = {source: target for source, target in pairs}
    targets = set(following.values())
    chains, seen = [], set()
    for start in [*(s for s in following if s not in targets), *following]:
        chain: list[int] = []
        at: int | None = start
        while at is not None and at not in seen:
            seen.add(at)
            chain.append(at)
            at = following.get(at)
        if len(chain) > 1:
            chains.append(chain)
    longest = max((len(chain) for chain in chains), default=0)
    return np.array([c for c in chains if len(c) == longest] or [[0]])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]
