"""The one table of accelerators that runs are planned for: compute, memory and links of one jax device.

In: a chip's product name; out: its constants, each with its source. A jax device is a whole chip on
v4 and v5p (two TensorCores that share its work, "megacore"), v5e and v6e, half a chip on TPU7x, and a
GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """Constants of one jax device.

    Attributes:
        name: product name, such as `v5p`.
        device_kind: as `jax.Device.device_kind` spells it.
        platform: `tpu` or `gpu`.
        peak: dense bfloat16 FLOP/s.
        clock: cycles a second, in which the TPU compiler counts; None on GPUs.
        cores: TensorCores that share the device's work.
        memory_bytes: of high-bandwidth memory.
        memory_bandwidth: bytes/s to and from it.
        link_bandwidth: bytes/s over one axis of the torus, both directions together; on GPUs what one
            sends over NVLink.
        torus_axes: axes of the torus; 0 on GPUs, which a switch connects.
        network_bandwidth: bytes/s that one device sends to other slices or machines.
        devices_per_chip: jax devices of a chip.
        devices_per_host: jax devices of one machine.
    """

    name: str
    device_kind: str
    platform: str
    peak: float
    clock: float | None
    cores: int
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    torus_axes: int
    network_bandwidth: float
    devices_per_chip: int = 1
    devices_per_host: int = 4
