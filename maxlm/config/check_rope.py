"""What can be wrong with the options of RoPE; yields the path of an option and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.config.choices import AttentionSpan, PositionKind, RopeScalingKind
from maxlm.config.schema import ModelConfig

Found = Iterator[tuple[tuple[str, ...], str]]


def rope_problems(model: ModelConfig) -> Found:
    """A stretch without its sizes, and a share of a head that pairs of dims do not fill."""
    scaling = model.rope_scaling
    by_length = scaling.kind in (RopeScalingKind.LLAMA3, RopeScalingKind.YARN)
    if by_length and scaling.original_length is None:
        yield (
            ("model", "rope_scaling", "original_length"),
            f"is not set, but {scaling.kind} needs it: the tokens of the context that the model "
            "was trained on before",
        )
    if by_length and scaling.slow_rotations >= scaling.fast_rotations:
        yield (
            ("model", "rope_scaling", "slow_rotations"),
            f"{scaling.slow_rotations:g} is not less than fast_rotations "
            f"{scaling.fast_rotations:g}: between the two, frequencies go over from divided to kept",
        )
    head_dim = model.head_dim or model.embed_dim // model.num_heads
    rotated = head_dim * model.rope_fraction
    if model.positions is PositionKind.ROPE and model.rope_fraction < 1 and rotated % 2:
        yield (
            ("model", "rope_fraction"),
            f"{model.rope_fraction:g} of head_dim {head_dim} is {rotated:g}, but rope turns pairs "
            "of dims: use a share that gives an even number",
        )


def idle_rope_options(model: ModelConfig) -> dict[str, tuple[bool, str]]:
    """Options without effect in this config, and because of what."""
    no_rope = model.positions is not PositionKind.ROPE
    because = f"model.positions is {model.positions}"
    names = ("rope_theta", "rope_local_theta", "rope_fraction", "rope_scaling.kind")
    idle = {f"model.{name}": (no_rope, because) for name in names}
    if not no_rope and AttentionSpan.LOCAL not in model.attention_pattern:
        idle["model.rope_local_theta"] = (True, "no layer is local (model.attention_pattern)")
    kind = model.rope_scaling.kind
    for name in ("factor", "original_length", "slow_rotations", "fast_rotations"):
        unused = kind is RopeScalingKind.NONE or (
            kind is RopeScalingKind.LINEAR and name != "factor"
        )
        idle[f"model.rope_scaling.{name}"] = (unused, f"model.rope_scaling.kind is {kind}")
    return idle
