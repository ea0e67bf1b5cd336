"""What can be wrong with the options of RoPE; yields the path of an option and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.config.choices import AttentionSpan, PositionKind, RopeScalingKind
from maxlm.config.head_widths import rotated_dim
from maxlm.config.schema import ModelConfig, RopeScaling

Found = Iterator[tuple[tuple[str, ...], str]]
_BY_LENGTH = (RopeScalingKind.LLAMA3, RopeScalingKind.YARN, RopeScalingKind.LONGROPE)
# Options of `model.rope_scaling` → the kinds that read them.
_READ_BY = {
    "factor": (*_BY_LENGTH, RopeScalingKind.LINEAR),
    "original_length": _BY_LENGTH,
    "slow_rotations": (RopeScalingKind.LLAMA3, RopeScalingKind.YARN),
    "fast_rotations": (RopeScalingKind.LLAMA3, RopeScalingKind.YARN),
    "truncate": (RopeScalingKind.YARN,),
    "short_factors": (RopeScalingKind.LONGROPE,),
    "long_factors": (RopeScalingKind.LONGROPE,),
}


def rope_problems(model: ModelConfig) -> Found:
    """A stretch without its sizes, and a share of a head that pairs of dims do not fill."""
    scaling = model.rope_scaling
    needs_length = scaling.kind in _BY_LENGTH
    by_rotations = scaling.kind in (RopeScalingKind.LLAMA3, RopeScalingKind.YARN)
    if needs_length and scaling.original_length is None:
        yield (
            ("model", "rope_scaling", "original_length"),
            f"is not set, but {scaling.kind} needs it: the tokens of the context that the model "
            "was trained on before",
        )
    if by_rotations and scaling.slow_rotations >= scaling.fast_rotations:
        yield (
            ("model", "rope_scaling", "slow_rotations"),
            f"{scaling.slow_rotations:g} is not less than fast_rotations "
            f"{scaling.fast_rotations:g}: between the two, frequencies go over from divided to kept",
        )
    if model.positions is PositionKind.ROPE and not any(model.rope_pattern):
        yield (
            ("model", "rope_pattern"),
            "leaves no layer with positions, but model.positions is rope: set model.positions to none",
        )
    head_dim = model.head_dim or model.embed_dim // model.num_heads
    rotated = rotated_dim(model)
    if model.positions is PositionKind.ROPE and model.rope_fraction < 1 and rotated % 2:
        yield (
            ("model", "rope_fraction"),
            f"{model.rope_fraction:g} of head_dim {head_dim} is {rotated:g}, but rope turns pairs "
            "of dims: use a share that gives an even number",
        )
    elif scaling.kind is RopeScalingKind.LONGROPE:
        yield from _longrope_problems(scaling, round(rotated))


def idle_rope_options(model: ModelConfig) -> dict[str, tuple[bool, str]]:
    """Options without effect in this config, and because of what."""
    no_rope = model.positions is not PositionKind.ROPE
    because = f"model.positions is {model.positions}"
    names = ("rope_theta", "rope_local_theta", "rope_fraction", "rope_scaling.kind", "rope_pattern")
    idle = {f"model.{name}": (no_rope, because) for name in names}
    if not no_rope and AttentionSpan.LOCAL not in model.attention_pattern:
        idle["model.rope_local_theta"] = (True, "no layer is local (model.attention_pattern)")
    kind = model.rope_scaling.kind
    because = f"model.rope_scaling.kind is {kind}"
    for name, kinds in _READ_BY.items():
        idle[f"model.rope_scaling.{name}"] = (kind not in kinds, because)
    idle["model.rope_context"] = (kind is not RopeScalingKind.LONGROPE, because)
    return idle


def _longrope_problems(scaling: RopeScaling, rotated: int) -> Found:
    """Factors that are not there, not positive, or not one for each frequency."""
    for name in ("short_factors", "long_factors"):
        path, factors = ("model", "rope_scaling", name), getattr(scaling, name)
        if factors is None:
            yield path, "is not set, but longrope divides every frequency by one of its own"
        elif len(factors) != rotated // 2:
            yield (
                path,
                f"has {len(factors)} factors, but {rotated} rotated dims of a head have "
                f"{rotated // 2} frequencies",
            )
        elif min(factors) <= 0:
            yield path, f"{min(factors):g} does not fit; allowed: more than 0"
