"""Widths of a head's parts that follow from several options (imports no jax)."""

from __future__ import annotations

from maxlm.config.schema import ModelConfig


def value_dim(model: ModelConfig) -> int:
    """Width of a value's head, of a model whose head_dim is resolved."""
    assert model.head_dim
    return model.value_head_dim or model.head_dim


def rotated_dim(model: ModelConfig) -> float:
    """Width of a head that RoPE turns; whole and even in a sound config."""
    if model.kv_latent_dim is not None:
        return model.latent_rope_dim or 0
    return (model.head_dim or model.embed_dim // model.num_heads) * model.rope_fraction
