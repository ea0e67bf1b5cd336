"""Rotary position embeddings (Su et al., arXiv:2104.09864), in the half-split layout.

In: the options of RoPE and positions; out: cosines and sines, by which heads are rotated
(`maxlm/kernels/rotation.py`). Frequencies may be stretched for contexts longer than the original one:
divided all alike (arXiv:2306.15595), or only those that turn seldom in the original context, by Llama
3.1's rule or by YaRN's (arXiv:2309.00071), or each by a factor of its own (LongRoPE, arXiv:2402.13753).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config.head_widths import rotated_dim
from maxlm.config.schema import ModelConfig, RopeScaling, RopeScalingKind

Angles = tuple[jax.Array, jax.Array]  # cosines and sines, each [B, T, 1, R/2]


def rope_angles(config: ModelConfig, positions: jax.Array, *, local: bool = False) -> Angles:
    """Cosines and sines of the rotations.

    Args:
        config: a resolved model.
        positions: `[B, T]` integer positions.
        local: of local layers, where `rope_local_theta` gives them frequencies of their own.

    Returns:
        Two float32 arrays `[B, T, 1, R/2]`, where R is the rotated width of a head; both carry the
        factor of attention that goes with a stretch.
    """
    width = round(rotated_dim(config))
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.rope_local_theta is not None:
        theta, scaling = config.rope_local_theta, RopeScaling()
    inverse = jnp.asarray(frequencies(width, theta, scaling, config.rope_context))
    angles = positions[..., None].astype(jnp.float32) * inverse  # [B, T, R/2]
    factor = attention_factor(scaling)
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    return (cos, sin) if factor == 1 else (factor * cos, factor * sin)


def frequencies(
    width: int, theta: float, scaling: RopeScaling, context: int | None = None
) -> np.ndarray:
    """Radians per position, float32 `[width / 2]`, fastest first.

    In float32 throughout and in the published order of operations: models were trained with these
    roundings, and at position 10,000 one unit in the last place is a milliradian.

    Args:
        width: rotated dims of a head.
        theta: base.
        scaling: how they are stretched.
        context: tokens of context, by which longrope takes its short or its long factors. All rows
            take the same: keys in a cache then stay valid, whatever a text's length.
    """
    exponents = np.arange(0, width, 2).astype(np.float32) / np.float32(width)
    periods = np.float32(theta) ** exponents
    plain = np.float32(1) / periods
    factor = np.float32(scaling.factor)
    match scaling.kind:
        case RopeScalingKind.NONE:
            return plain
        case RopeScalingKind.LINEAR:
            return plain / factor
        case RopeScalingKind.LLAMA3:
            kept = _kept_by_rotations(plain, scaling)
        case RopeScalingKind.YARN:
            kept = _kept_by_dim(width, theta, scaling)
        case RopeScalingKind.LONGROPE:
            assert context and scaling.original_length
            is_long = context > scaling.original_length
            factors = scaling.long_factors if is_long else scaling.short_factors
            return np.float32(1) / (np.asarray(factors, np.float32) * periods)
    return (1 - kept) * plain / factor + kept * plain


def attention_factor(scaling: RopeScaling) -> float:
    """Factor on rotated queries and on rotated keys."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    match scaling.kind:
        case RopeScalingKind.YARN:
            return 0.1 * math.log(scaling.factor) + 1
        case RopeScalingKind.LONGROPE:
            assert scaling.original_length
            return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))
    return 1.0


def _kept_by_rotations(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: linear in how often a frequency turns in the original context."""
    assert scaling.original_length
    wavelengths = np.float32(2 * math.pi) / plain
    rotations = np.float32(scaling.original_length) / wavelengths
    slow, fast = np.float32(scaling.slow_rotations), np.float32(scaling.fast_rotations)
    return np.clip((rotations - slow) / (fast - slow), 0, 1)


def _kept_by_dim(width: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """YaRN: linear in the index of the frequency, between the two that turn so often."""
    original = scaling.original_length
    assert original

    def index(rotations: float) -> float:
        return width * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index(scaling.fast_rotations), index(scaling.slow_rotations)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    # Where the two fall together, the step is as steep as the published code makes it.
    span = last - first or 0.001
    indices = np.arange(width // 2, dtype=np.float32)
    return 1 - np.clip((indices - np.float32(first)) / np.float32(span), 0, 1)
