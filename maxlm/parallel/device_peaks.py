"""The one table of devices' dense bf16 peaks, for MFU.

Sources: cloud.google.com/tpu/docs/system-architecture-tpu-vm (per chip) and NVIDIA data sheets
(dense, without sparsity, SXM).
"""

from __future__ import annotations

import jax

# Device kinds as `jax.Device.device_kind` spells them → TFLOP/s of one jax device.
PEAK_TFLOPS: dict[str, float] = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,  # half a chip, which is two devices
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
}


def peak_tflops(device: jax.Device) -> float | None:
    """Dense bf16 peak of a device in TFLOP/s; None where there is none to speak of (a CPU)."""
    return PEAK_TFLOPS.get(device.device_kind)
