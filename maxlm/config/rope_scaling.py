"""The options of `model.rope_scaling`: how rotary frequencies are stretched, see `maxlm.model.rope`."""

from __future__ import annotations

from pydantic import Field

from maxlm.config.choices import RopeScalingKind
from maxlm.config.section import Section


class RopeScaling(Section):
    """Frequencies for contexts longer than the one that a model was first trained on."""

    kind: RopeScalingKind = Field(
        RopeScalingKind.NONE,
        description="none, linear (all frequencies ÷ factor), llama3 or yarn (slow frequencies ÷ factor, fast ones kept), longrope (each ÷ its own factor).",
    )
    factor: float = Field(1.0, ge=1, description="How many times longer the context becomes.")
    original_length: int | None = Field(
        None, ge=1, description="Tokens of the context before (llama3, yarn and longrope)."
    )
    slow_rotations: float = Field(
        1.0,
        gt=0,
        description="Frequencies that turn less often than this in original_length are divided by factor (llama3: low_freq_factor; yarn: beta_slow).",
    )
    fast_rotations: float = Field(
        4.0,
        gt=0,
        description="Frequencies that turn more often than this are kept (llama3: high_freq_factor, 4; yarn: beta_fast, 32).",
    )
    attention_factor: float | None = Field(
        None,
        gt=0,
        description="Factor on rotated queries and on rotated keys (yarn, longrope); unset: 0.1 × ln(factor) + 1 with yarn, √(1 + ln(factor) / ln(original_length)) with longrope, else 1.",
    )
    truncate: bool = Field(
        True,
        description="Whether yarn goes over from divided to kept frequencies at whole indices (gpt-oss: false).",
    )
    short_factors: list[float] | None = Field(
        None,
        description="Divisors of the frequencies, fastest first, in a context of up to original_length tokens (longrope).",
    )
    long_factors: list[float] | None = Field(
        None, description="Divisors of the frequencies in a longer context (longrope)."
    )
