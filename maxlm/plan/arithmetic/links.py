"""How fast a group of devices along mesh axes exchanges bytes, and over which links.

In: a `Job` and mesh axes; out: bytes/s that a device sends, whether the group crosses slices or machines,
and how many axes of a TPU's torus it lies over, as `jax.experimental.mesh_utils` lays it out: innermost
axes first, whole torus axes where the sizes allow. On GPUs NVLink connects a machine, and between machines
every GPU has a network card.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from maxlm.config.mesh_axes import MESH_AXES
from maxlm.plan.arithmetic.job import Job


def bandwidth(job: Job, axes: tuple[str, ...]) -> tuple[float, bool]:
    """Bytes/s that a device of a group sends, and whether it goes over the network.

    Args:
        job: where.
        axes: mesh axes of the group, of more than one device together.
    """
    if job.chip.platform == "gpu":
        return _between_gpus(job, axes)
    if job.topology.slices > 1 and "replica" in axes:
        # Inside a slice sums are scattered first, so that each device sends its part (see
        # `traffic.py`); the network is what bounds them.
        return job.chip.network_bandwidth, True
    # All links of the chip, as the reading of compiled programs counts (`reading/collectives.py`), so that both
    # say the same of the same bytes.
    return job.chip.sent_over_links, False


def torus_links(job: Job, axes: tuple[str, ...]) -> int:
    """How many axes of the torus a group of devices along mesh axes lies over."""
    sizes = tuple(job.mesh[axis] for axis in MESH_AXES)
    taken = _torus_axes(sizes, job.topology.shape, job.chip.devices_per_chip)
    return len({link for axis in axes for link in taken[MESH_AXES.index(axis)]})


def network_share(job: Job, payload: float) -> tuple[float, float]:
    """Seconds and wire bytes of an all-reduce over replicas that lie on several slices of a TPU.

    Those of a slice add up and scatter first, over its links; each then exchanges its part over the
    network; at last a slice gathers again.

    Args:
        job: where.
        payload: bytes that every device adds.
    """
    slices = job.topology.slices
    inner = job.mesh["replica"] // slices
    crossing = 2 * (slices - 1) / slices * payload / inner
    inside = 2 * (inner - 1) / inner * payload
    seconds = crossing / job.chip.network_bandwidth + inside / job.chip.sent_over_links
    return seconds, crossing + inside


def _between_gpus(job: Job, axes: tuple[str, ...]) -> tuple[float, bool]:
    """Of a ring through machines every member's network card carries a part."""
    machine, inner, together = job.chip.devices_per_host, 1, 1
    for axis in reversed(MESH_AXES):
        size = job.mesh[axis]
        if axis in axes:
            # Members of one machine: what is left of it when the axes inside are laid out.
            together *= min(size, max(1, machine // inner))
        inner *= size
    if together == math.prod(job.mesh[axis] for axis in axes):
        return job.chip.link_bandwidth, False
    return min(job.chip.link_bandwidth, job.chip.network_bandwidth * together), True


@lru_cache(maxsize=4096)
def _torus_axes(
    sizes: tuple[int, ...], shape: tuple[int, ...], devices_per_chip: int
) -> tuple[tuple[int, ...], ...]:
    """The axes of the torus that each mesh axis takes."""
    left = [side for side in shape if side > 1]
    within = devices_per_chip  # devices of a chip, which no link of the torus connects
    taken: list[tuple[int, ...]] = [()] * len(sizes)
    for index in reversed(range(len(sizes))):
        size = sizes[index]
        shared = math.gcd(size, within)
        size, within = size // shared, within // shared
        if size == 1:
            continue
        whole = _whole_axes(size, left)
        if whole is not None:
            taken[index] = whole
            for link in whole:
                left[link] = 1
            continue
        used = []
        for link in sorted(range(len(left)), key=lambda i: -left[i]):
            part = math.gcd(size, left[link])
            if part > 1:
                used.append(link)
                size, left[link] = size // part, left[link] // part
        taken[index] = tuple(used)
    return tuple(taken)


def _whole_axes(size: int, left: list[int]) -> tuple[int, ...] | None:
    """The most torus axes that multiply to a size."""
    for count in range(len(left), 0, -1):
        for links in itertools.combinations(range(len(left)), count):
            sides = [left[link] for link in links]
            if min(sides) > 1 and math.prod(sides) == size:
                return links
    return None
