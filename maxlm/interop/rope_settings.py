"""Settings of config.json about rotary positions: their base, their share of a head, their stretch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.choices import RopeScalingKind
from maxlm.config.schema import ModelConfig, RopeScaling
from maxlm.errors import ConfigError
from maxlm.interop.position_settings import FULL, SLIDING
from maxlm.interop.settings import value_of

# Their names of a scaling's numbers → ours, by kind.
_NUMBERS: dict[RopeScalingKind, dict[str, str]] = {
    RopeScalingKind.NONE: {},
    RopeScalingKind.LINEAR: {"factor": "factor"},
    RopeScalingKind.LLAMA3: {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "slow_rotations",
        "high_freq_factor": "fast_rotations",
    },
    RopeScalingKind.YARN: {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_slow": "slow_rotations",
        "beta_fast": "fast_rotations",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    RopeScalingKind.LONGROPE: {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        "attention_factor": "attention_factor",
    },
}
_KINDS = {"default": RopeScalingKind.NONE, "linear": RopeScalingKind.LINEAR}
_KINDS |= {"llama3": RopeScalingKind.LLAMA3, "yarn": RopeScalingKind.YARN}
# Phi-3 called longrope "su" at first.
_KINDS |= {"longrope": RopeScalingKind.LONGROPE, "su": RopeScalingKind.LONGROPE}


@dataclass(frozen=True)
class Rope:
    """Rotary positions, in the keys of transformers 4 (`rope_theta`, `rope_scaling`) or 5.

    Attributes:
        theta: base where config.json has none.
        local_theta: likewise of local layers, in a family where they have their own.
        original: tokens of the context before a stretch, where config.json has none; None: all that
            the model takes.
        partial: whether transformers turns a share of a head in this family; elsewhere its code takes
            whole heads alone.
        required: config.json must say the scaling, even that there is none: without a word, transformers
            stretches (gpt-oss).
    """

    theta: float = 10_000.0
    local_theta: float | None = None
    original: int | None = None
    partial: bool = False
    required: bool = False
    keys: tuple[str, ...] = (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    )

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`rope_theta`, `rope_scaling`, `rope_fraction`, `rope_local_theta`."""
        given, local, key = rope_parameters(theirs)
        if self.required and not given:
            raise ConfigError("rope_scaling: is missing")
        theta = given.pop("rope_theta", None) or theirs.get("rope_theta") or self.theta
        fraction = given.pop("partial_rotary_factor", None) or theirs.get("partial_rotary_factor")
        if fraction and fraction != 1 and not self.partial:
            raise ConfigError(f"partial_rotary_factor: {fraction!r} is not supported, only 1.0 is")
        fields: dict[str, Any] = {
            "rope_theta": float(theta),
            "rope_fraction": float(fraction or 1.0),
            "rope_scaling": self._scaling(given, key, theirs),
        }
        if self.local_theta is not None:
            own = local.pop("rope_theta", None) or theirs.get("rope_local_base_freq")
            if self._scaling(local, key, theirs) != RopeScaling():
                raise ConfigError(f"{key}: scaling of local layers is not supported: {local}")
            fields["rope_local_theta"] = float(own or self.local_theta)
        return fields

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of transformers 4, which 5 reads too."""
        keys: dict[str, Any] = {"rope_theta": model.rope_theta}
        if model.rope_fraction != 1 and self.partial:
            keys["partial_rotary_factor"] = model.rope_fraction
        if self.local_theta is not None:
            keys["rope_local_base_freq"] = model.rope_local_theta or model.rope_theta
        scaling = model.rope_scaling
        if scaling.kind is RopeScalingKind.NONE:
            return keys | ({"rope_scaling": {"rope_type": "default"}} if self.required else {})
        numbers = {n: getattr(scaling, f) for n, f in _NUMBERS[scaling.kind].items()}
        given = {name: number for name, number in numbers.items() if number is not None}
        if given.get("truncate"):
            del given["truncate"]  # as an absent one
        keys["rope_scaling"] = {"rope_type": scaling.kind.value, **given}
        if scaling.kind is RopeScalingKind.LONGROPE:
            # transformers 4 takes these three alone, the rest from beside them.
            keys["original_max_position_embeddings"] = given.pop("original_max_position_embeddings")
            if given["factor"] == _stretch(model.max_length, scaling.original_length):
                del given["factor"]
            keys["rope_scaling"] = {"type": scaling.kind.value, **given}
        return keys

    def _scaling(self, given: dict[str, Any], key: str, theirs: Mapping[str, Any]) -> RopeScaling:
        """Our scaling of theirs. Raises ConfigError naming what is not supported."""
        given = {name: value for name, value in given.items() if value is not None}
        name = given.pop("rope_type", None) or given.pop("type", None) or "default"
        given.pop("type", None)
        if name not in _KINDS:
            known = ", ".join(_KINDS)
            raise ConfigError(f"{key}.rope_type: {name!r} is not supported; supported: {known}")
        kind = _KINDS[name]
        if kind is RopeScalingKind.NONE:
            return RopeScaling()
        if kind is RopeScalingKind.YARN:
            _join_mscales(given)
        numbers = _NUMBERS[kind]
        if unknown := [n for n in given if n not in numbers]:
            raise ConfigError(
                f"{key}.{unknown[0]}: {given[unknown[0]]!r} is not supported with {name}"
            )
        fields = {ours: given[n] for n, ours in numbers.items() if n in given}
        if kind is RopeScalingKind.LINEAR:
            return RopeScaling(kind=kind, **fields)
        longest, outside = (
            theirs.get(n) for n in ("max_position_embeddings", "original_max_position_embeddings")
        )
        # Phi-3 has it outside, and that counts.
        inside = fields.get("original_length")
        first = outside or self.original if kind is RopeScalingKind.LONGROPE else inside
        original = first or inside or outside or value_of(theirs, "max_position_embeddings")
        fields["original_length"] = original
        if kind is not RopeScalingKind.LLAMA3:
            fields.setdefault("factor", _stretch(longest, original))
        if kind is RopeScalingKind.YARN:
            fields.setdefault("fast_rotations", 32.0)
        for ours in ("short_factors", "long_factors"):
            if kind is RopeScalingKind.LONGROPE and ours not in fields:
                raise ConfigError(f"{key}.{ours[:-1]}: is missing")
        return RopeScaling(kind=kind, **fields)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """By what YaRN sharpens attention that it stretches: 0.1 × mscale × ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def rope_parameters(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What is said of all layers, of local layers where they differ, and the key that says it."""
    given = dict(theirs.get("rope_parameters") or {})
    local: dict[str, Any] = {}
    key = "rope_parameters" if given else "rope_scaling"
    if FULL in given or SLIDING in given:
        local, given = dict(given.get(SLIDING) or {}), dict(given.get(FULL) or {})
    if not given:
        given = dict(theirs.get("rope_scaling") or {})
    return given, local, key


def _join_mscales(given: dict[str, Any]) -> None:
    """`mscale` and `mscale_all_dim` are one factor on rotated queries and keys, their quotient."""
    mscale, every_dim = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    factor = given.get("factor")
    if mscale and every_dim and factor and "attention_factor" not in given:
        given["attention_factor"] = yarn_scale(factor, mscale) / yarn_scale(factor, every_dim)


def _stretch(longest: int | None, original: int | None) -> float:
    """How many times longer the context becomes, where config.json leaves it to be divided."""
    return max(1.0, longest / original) if longest and original else 1.0
