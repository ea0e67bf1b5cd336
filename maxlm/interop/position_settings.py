"""Settings of config.json about layers: which of them see a window, which have positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from maxlm.config.choices import AttentionSpan
from maxlm.config.expert_layers import layers_of
from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError
from maxlm.interop.settings import value_of

SLIDING, FULL = "sliding_attention", "full_attention"
_SPANS = {SLIDING: AttentionSpan.LOCAL, FULL: AttentionSpan.GLOBAL}
_NAMES = {span: name for name, span in _SPANS.items()}


@dataclass(frozen=True)
class Window:
    """Which layers see a window: all or none, by a flag, or by a pattern.

    Attributes:
        flag: `use_sliding_window` must be set for any to do so (Qwen), and without `layer_types` the
            first `max_window_layers` see everything.
        period: without `layer_types`, each period-th layer sees everything (Gemma).
        default: window where config.json has none.
        without_rope: without `layer_types`, the layers without positions see it (SmolLM3).
    """

    flag: bool = False
    period: int | None = None
    default: int | None = None
    without_rope: bool = False
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
                "max_window_layers": types.index(SLIDING),
                "layer_types": types,
            }
        if self.period is not None:
            window = {"sliding_window": model.attention_window} if local else {}
            return {**window, "layer_types": types}
        # A pattern that differs by layer cannot be said here: reading back finds it out.
        return {"sliding_window": model.attention_window if local else None}

    def _types(self, theirs: Mapping[str, Any], layers: int) -> list[str]:
        if self.without_rope:
            return [FULL if has else SLIDING for has in _layers_with_rope(theirs)]
        if self.flag:
            full = value_of(theirs, "max_window_layers", layers)
            return [FULL if i < full else SLIDING for i in range(layers)]
        if self.period is None:
            return [SLIDING] * layers
        period = theirs.get("sliding_window_pattern") or theirs.get("_sliding_window_pattern")
        every = period or self.period
        return [SLIDING if (i + 1) % every else FULL for i in range(layers)]


@dataclass(frozen=True)
class LayersWithRope:
    """Which layers have positions (SmolLM3): `no_rope_layers` is 1 where one has and 0 where not."""

    keys: tuple[str, ...] = ("no_rope_layers", "no_rope_layer_interval")

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`rope_pattern`, the shortest that gives these layers."""
        return {"rope_pattern": shortest_pattern(_layers_with_rope(theirs))}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The list of all layers."""
        return {"no_rope_layers": [int(layer.has_rope) for layer in layers_of(model)]}


_Kind = TypeVar("_Kind")


def shortest_pattern(layers: list[_Kind]) -> list[_Kind]:
    """The shortest list that, repeated, gives these layers."""
    for period in range(1, len(layers) + 1):
        if all(layer == layers[i % period] for i, layer in enumerate(layers)):
            return layers[:period]
    return layers


def _layers_with_rope(theirs: Mapping[str, Any]) -> list[bool]:
    """Of each layer, whether it has positions: as listed, or all but every so many-th."""
    layers = theirs.get("num_hidden_layers") or 1
    listed = theirs.get("no_rope_layers")
    if listed is None:
        every = value_of(theirs, "no_rope_layer_interval", 4)
        return [bool((layer + 1) % every) for layer in range(layers)]
    if len(listed) < layers:
        raise ConfigError(
            f"no_rope_layers: says of {len(listed)} layers whether they have positions, but "
            f"num_hidden_layers is {layers}"
        )
    return [bool(has) for has in listed[:layers]]
