"""What a call of attention asks for, what an implementation can do, and what it lacks for a call."""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Hardware:
    """The devices that a program is compiled for, which need not be this machine's.

    Attributes:
        platform: cpu, gpu or tpu.
        kind: as `jax.Device.device_kind` spells it.
        compute_capability: of an NVIDIA GPU, such as 9.0 for Hopper; None for anything else.
    """

    platform: str
    kind: str = ""
    compute_capability: float | None = None


@dataclass(frozen=True)
class AttentionCall:
    """Causal self-attention of packed rows, as a layer calls it; one device's share of the heads.

    Attributes:
        length: tokens of a row.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        head_dim: width of a head.
        dtype: of queries, keys and values.
        window: keys that a query sees; None: all before it.
        logit_cap: soft cap of the scores; None: none.
        value_dim: width of a value's head; None: head_dim.
        sinks: whether each head has a learned logit in the softmax's denominator.
    """

    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    window: int | None = None
    logit_cap: float | None = None
    value_dim: int | None = None
    sinks: bool = False


@dataclass(frozen=True)
class Features:
    """What an implementation can do, forward and backward. Every one does causality and segments.

    Attributes:
        platforms: where it runs.
        dtypes: of queries, keys and values.
        window: sliding windows.
        logit_cap: soft cap of the scores.
        grouped_queries: fewer key-value heads than query heads.
        value_dim: values of another width than queries and keys.
        sinks: learned logits in the softmax's denominator.
        length_multiple: the length must divide by it.
        head_dim_multiple: the head's width must divide by it, and that of the values.
        max_head_dim: the widest head; None: any.
        compute_capability: the lowest of an NVIDIA GPU.
    """

    platforms: tuple[str, ...]
    dtypes: tuple[str, ...]
    window: bool = True
    logit_cap: bool = True
    grouped_queries: bool = True
    value_dim: bool = True
    sinks: bool = True
    length_multiple: int = 1
    head_dim_multiple: int = 1
    max_head_dim: int | None = None
    compute_capability: float | None = None

    def lacking(self, call: AttentionCall, hardware: Hardware) -> list[str]:
        """What keeps the implementation from this call on this hardware; empty: nothing does."""
        lacks = []
        if hardware.platform not in self.platforms:
            lacks.append(f"it runs on {' and '.join(self.platforms)}, not on {hardware.platform}")
        elif (
            self.compute_capability and (hardware.compute_capability or 0) < self.compute_capability
        ):
            lacks.append(
                f"it needs an NVIDIA GPU of compute capability {self.compute_capability} or more, "
                f"not {hardware.kind or 'this one'} ({hardware.compute_capability})"
            )
        if call.dtype not in self.dtypes:
            lacks.append(f"it computes in {' or '.join(self.dtypes)}, not in {call.dtype}")
        if call.window is not None and not self.window:
            lacks.append(f"it has no sliding window (here {call.window})")
        if call.logit_cap is not None and not self.logit_cap:
            lacks.append(f"it has no soft cap (here {call.logit_cap})")
        if call.num_heads != call.num_kv_heads and not self.grouped_queries:
            lacks.append(
                f"it has no grouped queries (here {call.num_heads} heads over {call.num_kv_heads})"
            )
        value_dim = call.value_dim or call.head_dim
        if value_dim != call.head_dim and not self.value_dim:
            lacks.append(
                f"it has no values of another width (here {value_dim}, head_dim {call.head_dim})"
            )
        if call.sinks and not self.sinks:
            lacks.append("it has no attention sinks")
        if call.length % self.length_multiple:
            near = call.length // self.length_multiple * self.length_multiple
            lacks.append(
                f"length {call.length} does not divide by {self.length_multiple}: nearest are "
                f"{near} and {near + self.length_multiple}"
            )
        if call.head_dim % self.head_dim_multiple:
            lacks.append(f"head_dim {call.head_dim} does not divide by {self.head_dim_multiple}")
        elif value_dim % self.head_dim_multiple:
            lacks.append(f"value_head_dim {value_dim} does not divide by {self.head_dim_multiple}")
        if self.max_head_dim is not None and call.head_dim > self.max_head_dim:
            lacks.append(f"head_dim {call.head_dim} is above {self.max_head_dim}")
        return lacks


def hardware_of(device: jax.Device | None = None) -> Hardware:
    """Hardware of a device, also of one that is only described (None: this machine's first)."""
    device = jax.devices()[0] if device is None else device
    kind = getattr(device, "device_kind", "")
    capability = getattr(device, "compute_capability", None)
    try:
        number = None if capability is None else float(capability)
    except ValueError:  # AMD's are names, such as gfx90a
        number = None
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    return Hardware(platform, kind, number)
