"""Mesh axes that the links between the devices make slow, told before a run pays for them.

In go devices as the mesh lays them out and how wide a layer's MLP is; out come sentences for people.
A pure function of what the devices say of themselves, which may only be described.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from maxlm.config.mesh_axes import MESH_AXES
from maxlm.parallel.chips import chip_of

# What each sends inside every layer, which between machines goes over the network.
CHATTY_AXES = {
    "context": "keys and values",
    "expert": "tokens to their experts and back",
    "tensor": "activations",
}


def link_warnings(devices: np.ndarray, mlp_dim: int | None = None) -> list[str]:
    """What is slow about a mesh by the links alone; nothing for CPUs, whose links are no links.

    Args:
        devices: as the mesh lays them out, one dim for each of its axes.
        mlp_dim: hidden width of the MLP that a token visits in a layer; None: not known.
    """
    platform = devices.flat[0].platform
    if platform in ("gpu", "cuda", "rocm"):
        return _between_machines(devices)
    return _beyond_compute(devices, mlp_dim) if platform == "tpu" else []


def _between_machines(devices: np.ndarray) -> list[str]:
    machines = _machines(devices)
    if machines is None:
        return []
    most = max(Counter(machines.flat).values())
    found = []
    for axis, what in CHATTY_AXES.items():
        groups = np.moveaxis(machines, MESH_AXES.index(axis), -1)
        groups = groups.reshape(-1, groups.shape[-1])
        spanned = max(len(set(group)) for group in groups.tolist())
        if spanned > 1:
            found.append(
                f"{axis} {groups.shape[-1]} spans {spanned} machines of {most} GPU{'s' * (most > 1)}: "
                f"{what} go over the network in every layer. Inside a machine (context × expert × "
                f"tensor at most {most}) they are several times faster; fsdp, stage or replica "
                "between machines send less"
            )
    return found


def _machines(devices: np.ndarray) -> np.ndarray | None:
    """The machine, or the domain of NVLink, of each device; None where nothing tells."""

    def domain(device: Any) -> int | None:
        # What XLA calls a slice of GPUs is what shares a machine or NVLink.
        named = (getattr(device, name, None) for name in ("slice_index", "partition_index"))
        return next((index for index in named if index is not None), None)

    domains = [domain(device) for device in devices.flat]
    if None in domains:
        domains = [device.process_index for device in devices.flat]
        if len(set(domains)) == len(domains) > 1:
            return None  # a process for each GPU: any number of them may be on a machine
    return np.array(domains).reshape(devices.shape)


def _beyond_compute(devices: np.ndarray, mlp_dim: int | None) -> list[str]:
    """`tensor` where even the MLP, which computes most for what it sends, waits for its links.

    A gated MLP multiplies three times, 2 B T D F / Y each, while it gathers and scatters 4 B T D
    bytes of bfloat16: over all links of a chip at once it computes longer than it sends up to
    Y = 1.5 F × bytes/s ÷ FLOP/s. One without a gate, fewer links and attention do worse.
    """
    kind = devices.flat[0].device_kind
    size, chip = devices.shape[MESH_AXES.index("tensor")], chip_of(kind)
    if size == 1 or not mlp_dim or chip is None:
        return []
    most = 1.5 * mlp_dim * chip.sent_over_links / chip.peak
    if size <= most:
        return []
    return [
        f"tensor {size} on {kind}: a layer's activations travel longer than its MLP of {mlp_dim} "
        f"computes, beyond tensor {max(1, int(most))} (1.5 × {mlp_dim} × "
        f"{chip.sent_over_links / 1e9:g} GB/s ÷ {chip.peak / 1e12:g} TFLOP/s, at best); a smaller "
        "tensor and more fsdp is faster"
    ]
