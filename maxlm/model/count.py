"""Parameters and model FLOPs by arithmetic on a resolved config (imports no jax).

`tests/model/test_count.py` holds the counts against the declared parameters and the FLOPs against
the matmuls of the traced program.
"""

from __future__ import annotations

from maxlm.config.expert_layers import layers_with_experts
from maxlm.config.head_widths import value_dim
from maxlm.config.schema import (
    AttentionSpan,
    BiasKind,
    ModelConfig,
    NormKind,
    NormPlacement,
    PositionKind,
    QKNormWidth,
)

MFU_FORMULA = (
    "6 × matmul parameters (of experts, those that a token visits) + 6 × length × heads × head_dim per "
    "layer (causal; length capped at the window in local layers; head_dim the mean of keys' and values' "
    "widths), per token, over the device's dense bf16 peak"
)


def count_parameters(model: ModelConfig) -> int:
    """Parameters of a resolved model, vocabulary padding not counted."""
    assert model.vocab_size
    embed = model.embed_dim
    total = model.vocab_size * embed * (1 if model.tie_embeddings else 2)
    if model.positions is PositionKind.LEARNED:
        assert model.max_length
        total += model.max_length * embed
    total += _norm(model, embed) * (2 if model.embed_norm else 1)
    return total + _blocks(model)


def count_non_embedding_parameters(model: ModelConfig) -> int:
    """Parameters without token and position tables and without the output projection."""
    return _blocks(model) + _norm(model, model.embed_dim)


def widest_mlp(model: ModelConfig) -> int:
    """Hidden width of the widest MLP that a token visits in a layer, experts counted together."""
    visited = (model.experts_per_token + model.shared_experts) * (model.expert_mlp_dim or 0)
    widths = [visited if experts else model.mlp_dim or 0 for experts in layers_with_experts(model)]
    return max(widths, default=0)


def count_matmul_parameters(model: ModelConfig) -> int:
    """Parameters that a token is multiplied with: blocks' matrices and the output projection.

    Of experts, those that a token visits, the shared ones, and the router.
    """
    assert model.vocab_size
    visited = model.experts_per_token + model.shared_experts
    blocks = sum(
        _attention_matmul(model)
        + (_experts_matmul(model, visited) if has_experts else _mlp_matmul(model))
        for has_experts in layers_with_experts(model)
    )
    return blocks + model.vocab_size * model.embed_dim


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Model FLOPs of a train step per token: forward and backward, nothing recomputed.

    `6 × matmul parameters`, plus causal attention `6 × length × heads × head_dim` a layer (scores
    and values, 2 FLOPs a multiply-add, backward twice the forward, halved for causality; the
    length capped at the window in local layers). Where values have another width, scores and values
    are `3 × length × heads` of each: latent attention counts as it is computed, expanded.
    """
    assert model.head_dim
    attention = sum(
        3 * _seen(model, layer, length) * model.num_heads * (model.head_dim + value_dim(model))
        for layer in range(model.num_layers)
    )
    return 6 * count_matmul_parameters(model) + attention


def _seen(model: ModelConfig, layer: int, length: int) -> int:
    span = model.attention_pattern[layer % len(model.attention_pattern)]
    if span is AttentionSpan.LOCAL and model.attention_window:
        return min(length, model.attention_window)
    return length


def _blocks(model: ModelConfig) -> int:
    """All parameters of the blocks."""
    total = 0
    for has_experts in layers_with_experts(model):
        total += _attention_matmul(model) + _attention_and_norm_vectors(model)
        if has_experts:
            assert model.num_experts and model.expert_mlp_dim
            total += _experts_matmul(model, model.num_experts + model.shared_experts)
            total += model.num_experts * _mlp_biases(model, model.expert_mlp_dim)
            total += model.num_experts if model.router_logit_bias else 0
            if model.shared_experts:
                total += _mlp_biases(model, model.shared_experts * model.expert_mlp_dim)
        else:
            assert model.mlp_dim
            total += _mlp_matmul(model) + _mlp_biases(model, model.mlp_dim)
    return total


def _attention_matmul(model: ModelConfig) -> int:
    assert model.num_kv_heads and model.head_dim
    output = model.num_heads * value_dim(model) * model.embed_dim
    if model.kv_latent_dim is not None:
        return _latent_matmul(model) + output
    keys_and_values = model.num_kv_heads * (model.head_dim + value_dim(model))
    return model.embed_dim * (model.num_heads * model.head_dim + keys_and_values) + output


def _latent_matmul(model: ModelConfig) -> int:
    """Of the maps into latents and out of them, and of the key that all heads share."""
    assert model.head_dim and model.kv_latent_dim and model.latent_rope_dim
    embed, heads, rope = model.embed_dim, model.num_heads, model.latent_rope_dim
    into = (model.query_latent_dim or 0) + model.kv_latent_dim + rope
    query = (model.query_latent_dim or embed) * heads * model.head_dim
    unturned = model.head_dim - rope
    return embed * into + query + model.kv_latent_dim * heads * (unturned + value_dim(model))


def _mlp_matmul(model: ModelConfig) -> int:
    assert model.mlp_dim
    return _projections(model) * model.embed_dim * model.mlp_dim


def _experts_matmul(model: ModelConfig, count: int) -> int:
    """Of the router and of `count` experts."""
    assert model.num_experts and model.expert_mlp_dim
    expert = _projections(model) * model.expert_mlp_dim
    return model.embed_dim * (model.num_experts + count * expert)


def _projections(model: ModelConfig) -> int:
    return 3 if model.mlp.is_gated else 2


def _attention_and_norm_vectors(model: ModelConfig) -> int:
    """Biases and sinks of attention and the norms of a block."""
    assert model.num_kv_heads and model.head_dim
    placements = 4 if model.norm_placement is NormPlacement.BOTH else 2
    total = placements * _norm(model, model.embed_dim)
    if model.qk_norm:
        joint = model.qk_norm_width is QKNormWidth.PROJECTION
        heads = model.num_heads + model.num_kv_heads if joint else 2
        total += heads * _norm(model, model.head_dim)
    if model.attention_sinks:
        total += model.num_heads
    if model.kv_latent_dim is not None:
        assert model.latent_rope_dim
        latents = (model.query_latent_dim or 0) + model.kv_latent_dim
        total += _norm(model, latents)
        if model.attention_bias is BiasKind.ALL:
            total += latents + model.latent_rope_dim
    elif model.attention_bias is not BiasKind.NONE:
        total += (model.num_heads + model.num_kv_heads) * model.head_dim
        total += model.num_kv_heads * value_dim(model)
    if model.attention_bias is BiasKind.ALL:
        total += model.embed_dim
    return total


def _mlp_biases(model: ModelConfig, hidden: int) -> int:
    if not model.mlp_bias:
        return 0
    return (_projections(model) - 1) * hidden + model.embed_dim


def _norm(model: ModelConfig, size: int) -> int:
    return size * (2 if model.norm is NormKind.LAYER and model.norm_bias else 1)
