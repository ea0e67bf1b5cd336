"""Whether this machine has an accelerator, before jax starts its backends.

Where libtpu is installed but no TPU is attached, its start prints a page of errors; there jax is
told to take the CPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax

# TPUs, NVIDIA's GPUs (of WSL too) and AMD's. /dev/vfio is there without a TPU as well; then jax looks.
DEVICE_FILES = ("accel*", "vfio", "nvidia*", "dxg", "kfd")


def accelerator_attached(folder: str = "/dev") -> bool:
    """Whether the system shows a device file that a TPU's or GPU's driver makes."""
    return any(any(Path(folder).glob(pattern)) for pattern in DEVICE_FILES)


def use_cpu_where_alone(folder: str = "/dev") -> None:
    """Let jax start its CPU backend alone, where libtpu would only fail.

    What the user says (JAX_PLATFORMS, `jax_platforms`) stays; so does what has started already.
    """
    if not _asked() and _has_libtpu() and not accelerator_attached(folder):
        jax.config.update("jax_platforms", "cpu")


def _asked() -> str | None:
    return getattr(jax.config, "jax_platforms", None)


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None
