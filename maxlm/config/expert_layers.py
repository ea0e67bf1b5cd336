"""What kind each layer of a model is (imports no jax)."""

from __future__ import annotations

from typing import NamedTuple

from maxlm.config.schema import AttentionSpan, ModelConfig


class Layer(NamedTuple):
    """What distinguishes one block of a model from another."""

    span: AttentionSpan
    has_experts: bool
    has_rope: bool = True


def layers_of(model: ModelConfig) -> list[Layer]:
    """The blocks of a model, first to last."""
    spans, ropes = model.attention_pattern, model.rope_pattern
    return [
        Layer(spans[index % len(spans)], has_experts, ropes[index % len(ropes)])
        for index, has_experts in enumerate(layers_with_experts(model))
    ]


def layers_with_experts(model: ModelConfig) -> list[bool]:
    """Per layer, whether it has experts: each `expert_every`-th, past the dense ones."""
    return [
        model.num_experts is not None
        and layer >= model.dense_layers
        and (layer + 1) % model.expert_every == 0
        for layer in range(model.num_layers)
    ]
