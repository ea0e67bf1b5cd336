"""Settings of config.json about positions: RoPE with its scaling, and which layers see a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.choices import AttentionSpan, RopeScalingKind
from maxlm.config.schema import ModelConfig, RopeScaling
from maxlm.errors import ConfigError
from maxlm.interop.settings import value_of

_SLIDING, _FULL = "sliding_attention", "full_attention"
_SPANS = {_SLIDING: AttentionSpan.LOCAL, _FULL: AttentionSpan.GLOBAL}
_NAMES = {span: name for name, span in _SPANS.items()}
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
    },
}
_KINDS = {"default": RopeScalingKind.NONE, "linear": RopeScalingKind.LINEAR}
_KINDS |= {"llama3": RopeScalingKind.LLAMA3, "yarn": RopeScalingKind.YARN}


@dataclass(frozen=True)
class Rope:
    """Rotary positions, in the keys of transformers 4 (`rope_theta`, `rope_scaling`) or 5.

    Attributes:
        theta: base where config.json has none.
        local_theta: likewise of local layers, in a family where they have their own.
    """

    theta: float = 10_000.0
    local_theta: float | None = None
    keys: tuple[str, ...] = (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "partial_rotary_factor",
    )

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`rope_theta`, `rope_scaling`, `rope_fraction`, `rope_local_theta`."""
        given = dict(theirs.get("rope_parameters") or {})
        local: dict[str, Any] = {}
        key = "rope_parameters" if given else "rope_scaling"
        if _FULL in given or _SLIDING in given:
            local, given = dict(given.get(_SLIDING) or {}), dict(given.get(_FULL) or {})
        if not given:
            given = dict(theirs.get("rope_scaling") or {})
        theta = given.pop("rope_theta", None) or theirs.get("rope_theta") or self.theta
        fraction = given.pop("partial_rotary_factor", None) or theirs.get("partial_rotary_factor")
        fields: dict[str, Any] = {
            "rope_theta": float(theta),
            "rope_fraction": float(fraction or 1.0),
            "rope_scaling": _scaling(given, key, theirs),
        }
        if self.local_theta is not None:
            own = local.pop("rope_theta", None) or theirs.get("rope_local_base_freq")
            if _scaling(local, key, theirs) != RopeScaling():
                raise ConfigError(f"{key}: scaling of local layers is not supported: {local}")
            fields["rope_local_theta"] = float(own or self.local_theta)
        return fields

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of transformers 4, which 5 reads too."""
        keys: dict[str, Any] = {"rope_theta": model.rope_theta}
        if model.rope_fraction != 1:
            keys["partial_rotary_factor"] = model.rope_fraction
        if self.local_theta is not None:
            keys["rope_local_base_freq"] = model.rope_local_theta or model.rope_theta
        scaling = model.rope_scaling
        if scaling.kind is not RopeScalingKind.NONE:
            numbers = {n: getattr(scaling, f) for n, f in _NUMBERS[scaling.kind].items()}
            given = {name: number for name, number in numbers.items() if number is not None}
            keys["rope_scaling"] = {"rope_type": scaling.kind.value, **given}
        return keys


@dataclass(frozen=True)
class Window:
    """Which layers see a window: all or none, by a flag, or by a pattern.

    Attributes:
        flag: `use_sliding_window` must be set for any to do so (Qwen), and without `layer_types` the
            first `max_window_layers` see everything.
        period: without `layer_types`, each period-th layer sees everything (Gemma).
        default: window where config.json has none.
    """

    flag: bool = False
    period: int | None = None
    default: int | None = None
    keys: tuple[str, ...] = (
        "sliding_window",
        "layer_types",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "use_sliding_window",
        "max_window_layers",
    )

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`attention_pattern`, the shortest that gives these layers, and `attention_window`."""
        layers, window = theirs.get("num_hidden_layers") or 1, theirs.get("sliding_window")
        if window is None and "sliding_window" not in theirs:
            window = self.default
        off = window is None or (self.flag and not theirs.get("use_sliding_window"))
        types = theirs.get("layer_types") or self._types(theirs, layers)
        if unknown := [name for name in types if name not in _SPANS]:
            raise ConfigError(
                f"layer_types: {unknown[0]!r} is not supported, only {_NAMES.values()}"
            )
        spans = [AttentionSpan.GLOBAL if off else _SPANS[name] for name in types]
        local = AttentionSpan.LOCAL in spans
        return {
            "attention_pattern": shortest_pattern(spans),
            "attention_window": window if local else None,
        }

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys, with every layer's type where layers differ."""
        pattern = model.attention_pattern
        spans = [pattern[i % len(pattern)] for i in range(model.num_layers)]
        types = [_NAMES[span] for span in spans]
        local = AttentionSpan.LOCAL in spans
        if self.flag:
            if not local:
                return {"use_sliding_window": False}
            return {
                "use_sliding_window": True,
                "sliding_window": model.attention_window,
                "max_window_layers": types.index(_SLIDING),
                "layer_types": types,
            }
        if self.period is not None:
            window = {"sliding_window": model.attention_window} if local else {}
            return {**window, "layer_types": types}
        # A pattern that differs by layer cannot be said here: reading back finds it out.
        return {"sliding_window": model.attention_window if local else None}

    def _types(self, theirs: Mapping[str, Any], layers: int) -> list[str]:
        if self.flag:
            full = value_of(theirs, "max_window_layers", layers)
            return [_FULL if i < full else _SLIDING for i in range(layers)]
        if self.period is None:
            return [_SLIDING] * layers
        period = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern")
        every = period or self.period
        return [_SLIDING if (i + 1) % every else _FULL for i in range(layers)]


def shortest_pattern(spans: list[AttentionSpan]) -> list[AttentionSpan]:
    """The shortest list that, repeated, gives these layers."""
    for period in range(1, len(spans) + 1):
        if all(span is spans[i % period] for i, span in enumerate(spans)):
            return spans[:period]
    return spans


def _scaling(given: dict[str, Any], key: str, theirs: Mapping[str, Any]) -> RopeScaling:
    """Our scaling of theirs. Raises ConfigError naming what is not supported."""
    given = {name: value for name, value in given.items() if value is not None}
    name = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if name not in _KINDS:
        known = ", ".join(_KINDS)
        raise ConfigError(f"{key}.rope_type: {name!r} is not supported; supported: {known}")
    kind = _KINDS[name]
    numbers = _NUMBERS[kind]
    if unknown := [n for n in given if n not in numbers and kind is not RopeScalingKind.NONE]:
        raise ConfigError(f"{key}.{unknown[0]}: {given[unknown[0]]!r} is not supported with {name}")
    fields = {ours: given[n] for n, ours in numbers.items() if n in given}
    if kind in (RopeScalingKind.LLAMA3, RopeScalingKind.YARN):
        outside = theirs.get("original_max_position_embeddings")
        fallback = outside or value_of(theirs, "max_position_embeddings")
        fields.setdefault("original_length", fallback)
    if kind is RopeScalingKind.YARN:
        fields.setdefault("fast_rotations", 32.0)
    return RopeScaling(kind=kind, **fields)
