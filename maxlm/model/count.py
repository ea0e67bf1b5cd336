"""Parameters and model FLOPs by arithmetic on a resolved config (imports no jax).

`tests/model/test_count.py` holds the counts against the declared parameters and the FLOPs against
the matmuls of the traced program.
"""

from __future__ import annotations

from maxlm.config.schema import (
    AttentionSpan,
    BiasKind,
    MLPKind,
    ModelConfig,
    NormKind,
    NormPlacement,
    PositionKind,
)

MFU_FORMULA = (
    "6 × matmul parameters + 6 × length × heads × head_dim per layer (causal; length capped at "
    "the window in local layers), per token, over the device's dense bf16 peak"
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
    return total + model.num_layers * (_block_matmul(model) + _block_vectors(model))


def count_non_embedding_parameters(model: ModelConfig) -> int:
    """Parameters without token and position tables and without the output projection."""
    return model.num_layers * (_block_matmul(model) + _block_vectors(model)) + _norm(
        model, model.embed_dim
    )


def count_matmul_parameters(model: ModelConfig) -> int:
    """Parameters that a token is multiplied with: blocks' matrices and the output projection."""
    assert model.vocab_size
    return model.num_layers * _block_matmul(model) + model.vocab_size * model.embed_dim


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Model FLOPs of a train step per token: forward and backward, nothing recomputed.

    `6 × matmul parameters`, plus causal attention `6 × length × heads × head_dim` a layer (scores
    and values, 2 FLOPs a multiply-add, backward twice the forward, halved for causality; the
    length capped at the window in local layers).
    """
    assert model.head_dim
    attention = sum(
        6 * _seen(model, layer, length) * model.num_heads * model.head_dim
        for layer in range(model.num_layers)
    )
    return 6 * count_matmul_parameters(model) + attention


def _seen(model: ModelConfig, layer: int, length: int) -> int:
    span = model.attention_pattern[layer % len(model.attention_pattern)]
    if span is AttentionSpan.LOCAL and model.attention_window:
        return min(length, model.attention_window)
    return length


def _block_matmul(model: ModelConfig) -> int:
    assert model.num_kv_heads and model.head_dim and model.mlp_dim
    heads = 2 * model.num_heads + 2 * model.num_kv_heads
    projections = 3 if model.mlp is MLPKind.GATED else 2
    return model.embed_dim * (heads * model.head_dim + projections * model.mlp_dim)


def _block_vectors(model: ModelConfig) -> int:
    assert model.num_kv_heads and model.head_dim and model.mlp_dim
    placements = 4 if model.norm_placement is NormPlacement.BOTH else 2
    total = placements * _norm(model, model.embed_dim)
    if model.qk_norm:
        total += 2 * _norm(model, model.head_dim)
    if model.attention_bias is not BiasKind.NONE:
        total += (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    if model.attention_bias is BiasKind.ALL:
        total += model.embed_dim
    if model.mlp_bias:
        hidden = 2 if model.mlp is MLPKind.GATED else 1
        total += hidden * model.mlp_dim + model.embed_dim
    return total


def _norm(model: ModelConfig, size: int) -> int:
    return size * (2 if model.norm is NormKind.LAYER and model.norm_bias else 1)
