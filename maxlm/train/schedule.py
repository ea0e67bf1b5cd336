"""The learning rate over training, as a fraction of its peak.

Warm-up–stable–decay (arXiv:2404.06395) or cosine (arXiv:1608.03983).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maxlm.config.schema import ScheduleConfig, ScheduleKind


def rate_fraction(
    step: jax.Array, schedule: ScheduleConfig, *, warmup_steps: int, total_steps: int
) -> jax.Array:
    """Fraction of the peak learning rate at a step.

    Args:
        step: steps already taken, from 0; any shape.
        schedule: kind, decay_fraction and final_fraction.
        warmup_steps: steps of linear warm-up; the first step already moves.
        total_steps: steps of the run; the last one uses (almost) the final fraction.

    Returns:
        A float32 array of `step`'s shape.
    """
    now = step.astype(jnp.float32)
    warmup = jnp.minimum((now + 1) / max(warmup_steps, 1), 1.0)
    final = schedule.final_fraction
    if schedule.kind is ScheduleKind.COSINE:
        span = max(total_steps - warmup_steps, 1)
        progress = jnp.clip((now + 1 - warmup_steps) / span, 0.0, 1.0)
        after = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    else:
        decay_steps = round(schedule.decay_fraction * total_steps)
        left = jnp.clip((total_steps - now) / max(decay_steps, 1), 0.0, 1.0)
        after = final + (1 - final) * left
    return warmup * after
