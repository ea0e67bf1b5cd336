"""The learning rate over training, as a fraction of its peak.

Warm-up–stable–decay (arXiv:2404.06395) or cosine (arXiv:1608.03983).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maxlm.config.schema import ScheduleConfig, ScheduleKind


@dataclass(frozen=True)
class RateSchedule:
    """Fraction of the peak learning rate by step.

    Attributes:
        config: kind, decay_fraction and final_fraction.
        warmup_steps: steps of linear warm-up; the first step already moves.
        total_steps: steps of the run; the last one uses (almost) the final fraction.
        start_step: where the schedule begins (the branch point of a run that branches off).
    """

    config: ScheduleConfig
    warmup_steps: int
    total_steps: int
    start_step: int = 0

    def __call__(self, step: ArrayLike) -> jax.Array:
        """Float32 fraction for `step` (steps already taken, from 0; any shape)."""
        now = jnp.asarray(step, jnp.float32) - self.start_step
        total = self.total_steps - self.start_step
        warmup = jnp.minimum((now + 1) / max(self.warmup_steps, 1), 1.0)
        final = self.config.final_fraction
        if self.config.kind is ScheduleKind.COSINE:
            span = max(total - self.warmup_steps, 1)
            progress = jnp.clip((now + 1 - self.warmup_steps) / span, 0.0, 1.0)
            after = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            decay_steps = round(self.config.decay_fraction * total)
            left = jnp.clip((total - now) / max(decay_steps, 1), 0.0, 1.0)
            after = final + (1 - final) * left
        return warmup * after
