"""The options of `model`: what the decoder is, see `maxlm.config.schema`."""

from __future__ import annotations

from pydantic import Field

from maxlm.config.choices import (
    Activation,
    AttentionSpan,
    BiasKind,
    MatrixInit,
    MLPKind,
    NormKind,
    NormPlacement,
    PositionKind,
    ProjectionInit,
    QKNormWidth,
    RouterScoring,
)
from maxlm.config.rope_scaling import RopeScaling
from maxlm.config.section import Section


class ModelConfig(Section):
    """The decoder: sizes first, then what distinguishes one family from another."""

    vocab_size: int | None = Field(
        None, ge=1, description="Tokens in the vocabulary; derived: the tokenizer's."
    )
    num_layers: int = Field(12, ge=1, description="Transformer blocks.")
    embed_dim: int = Field(768, ge=1, description="Width of the residual stream.")
    num_heads: int = Field(12, ge=1, description="Query heads.")
    num_kv_heads: int | None = Field(
        None, ge=1, description="Key-value heads; derived: num_heads (no grouping)."
    )
    head_dim: int | None = Field(
        None, ge=1, description="Width of one head; derived: embed_dim / num_heads."
    )
    value_head_dim: int | None = Field(
        None, ge=1, description="Width of a value's head (DeepSeek-V3: 128); unset: head_dim."
    )
    kv_latent_dim: int | None = Field(
        None,
        ge=1,
        description="Width of the latent from which keys and values come, in latent attention (DeepSeek-V3: 512); unset: none, they come from the residual stream.",
    )
    query_latent_dim: int | None = Field(
        None,
        ge=1,
        description="Width of the latent from which queries come (DeepSeek-V3: 1536); unset: they come from the residual stream.",
    )
    latent_rope_dim: int | None = Field(
        None,
        ge=1,
        description="Width of the rotated part of a head in latent attention, whose key all heads share; the rest of head_dim is not rotated (DeepSeek-V3: 64).",
    )
    mlp_dim: int | None = Field(
        None,
        ge=1,
        description="Hidden width of the MLP; derived: 4 × embed_dim plain, 8/3 × embed_dim up to a multiple of 64 gated.",
    )
    mlp: MLPKind = Field(
        MLPKind.GATED,
        description="gated (SwiGLU and kin: gate × up), gated_shifted (gate × (up + 1), gpt-oss) or plain (one up projection).",
    )
    activation: Activation = Field(
        Activation.SILU,
        description="silu, gelu (exact), gelu_tanh, quick_gelu (x × sigmoid(1.702 x)), relu or relu2 (squared ReLU).",
    )
    mlp_limit: float | None = Field(
        None,
        gt=0,
        description="The gate is clamped to at most this, the up projection to within it on both sides (gpt-oss: 7).",
    )
    norm: NormKind = Field(NormKind.RMS, description="rms or layer.")
    norm_placement: NormPlacement = Field(
        NormPlacement.PRE,
        description="Norm before each sublayer (pre), after it (post: on the sublayer's output before the residual sum), or both.",
    )
    norm_epsilon: float = Field(1e-6, gt=0, description="Added to the variance inside a norm.")
    norm_bias: bool = Field(False, description="Whether a layer norm has a bias (GPT-2 has).")
    embed_norm: bool = Field(False, description="Norm of the embeddings before the first block.")
    positions: PositionKind = Field(
        PositionKind.ROPE, description="rope, learned (a table of max_length rows) or none."
    )
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    rope_local_theta: float | None = Field(
        None,
        gt=0,
        description="Base in local layers, whose frequencies are not stretched (Gemma 3: 10000); unset: rope_theta, stretched as in all layers.",
    )
    rope_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a head's width that is rotated, its first dims (Phi-4-mini: 0.75).",
    )
    rope_scaling: RopeScaling = RopeScaling()
    rope_context: int | None = Field(
        None,
        ge=1,
        description="Tokens of context by which longrope takes its short or its long factors, for all rows alike; derived: the longest example of the run.",
    )
    rope_pattern: list[bool] = Field(
        [True],
        min_length=1,
        description="Repeating pattern of layers with RoPE (true) and without positions (false), first layer first (SmolLM3: three with, one without).",
    )
    max_length: int | None = Field(
        None, ge=1, description="Longest sequence of learned positions; derived: the data's length."
    )
    qk_norm: bool = Field(
        False,
        description="Norm (of the kind that model.norm says) of each query and key head before attention (Qwen3).",
    )
    qk_norm_width: QKNormWidth = Field(
        QKNormWidth.HEAD,
        description="What qk_norm takes its mean over: each head, or the projection of all heads together (OLMo 2).",
    )
    attention_scale: float | None = Field(
        None,
        gt=0,
        description="Factor on attention logits (Gemma 2 27B: 1 / sqrt(144)); unset: 1 / sqrt(head_dim).",
    )
    attention_pattern: list[AttentionSpan] = Field(
        [AttentionSpan.GLOBAL],
        min_length=1,
        description="Repeating pattern of global and local (windowed) layers, first layer first.",
    )
    attention_window: int | None = Field(
        None, ge=1, description="How many tokens a local layer sees, itself included."
    )
    attention_logit_cap: float | None = Field(
        None, gt=0, description="Soft cap of attention logits: cap × tanh(x / cap) (Gemma 2: 50)."
    )
    output_logit_cap: float | None = Field(
        None, gt=0, description="Soft cap of output logits (Gemma 2: 30)."
    )
    attention_sinks: bool = Field(
        False,
        description="A learned logit of each head in the softmax's denominator, to which attention can go for nothing (gpt-oss).",
    )
    attention_bias: BiasKind = Field(
        BiasKind.NONE, description="Biases of attention: none, qkv (Qwen2) or all (GPT-2)."
    )
    mlp_bias: bool = Field(False, description="Biases in the MLP (GPT-2).")
    tie_embeddings: bool = Field(True, description="Output projection shares the embedding table.")
    embed_scale: float | None = Field(
        None, gt=0, description="Factor on embeddings (Gemma: sqrt(embed_dim)); unset: 1."
    )
    init_std: float = Field(
        0.02,
        gt=0,
        description="Standard deviation of embeddings and, without a fan-in rule, of matrices.",
    )
    matrix_init: MatrixInit = Field(
        MatrixInit.FIXED,
        description="Standard deviation of matrices: fixed (init_std) or fan_in (1 / sqrt(embed_dim)).",
    )
    projection_init: ProjectionInit = Field(
        ProjectionInit.SCALED,
        description="Projections into the residual stream start scaled (init_std / sqrt(2 × num_layers), GPT-2) or at zero (muP, nanochat).",
    )
    vocab_multiple: int = Field(
        128,
        ge=1,
        description="The vocabulary is padded to this multiple, whatever the mesh; padded logits are masked.",
    )
    num_experts: int | None = Field(
        None, ge=2, description="Experts in place of a block's MLP; unset: none, a dense model."
    )
    experts_per_token: int = Field(
        2, ge=1, description="Experts that a token visits (top-k; Mixtral: 2, Qwen3: 8)."
    )
    expert_mlp_dim: int | None = Field(
        None, ge=1, description="Hidden width of one expert; derived: mlp_dim."
    )
    shared_experts: int = Field(
        0, ge=0, description="Experts that every token visits besides, unrouted (DeepSeek-V3: 1)."
    )
    dense_layers: int = Field(
        0, ge=0, description="First layers that keep an MLP of mlp_dim (DeepSeek-V3: 3)."
    )
    expert_every: int = Field(
        1, ge=1, description="Every how many layers, counted from the first, one has experts."
    )
    router_scoring: RouterScoring = Field(
        RouterScoring.SOFTMAX,
        description="Scores of the router: softmax over experts, or sigmoid of each (DeepSeek-V3).",
    )
    router_logit_bias: bool = Field(
        False, description="A learned bias on the router's logits (gpt-oss)."
    )
    router_groups: int = Field(
        1,
        ge=1,
        description="Groups of experts, of which a token visits router_groups_per_token (DeepSeek-V3: 8).",
    )
    router_groups_per_token: int = Field(
        1,
        ge=1,
        description="The groups with the best expert, or with sigmoid the best two, are a token's (DeepSeek-V3: 4).",
    )
    router_normalize: bool = Field(
        True, description="Whether the scores of a token's experts are scaled to sum to 1."
    )
    router_scale: float = Field(
        1.0, gt=0, description="Factor on these scores after that (DeepSeek-V3: 2.5)."
    )
    router_bias_rate: float | None = Field(
        None,
        ge=0,
        description="Biases of the router that balance the load without a loss, and how far they move in a step (DeepSeek-V3: 0.001; 0 keeps them); unset: no biases.",
    )
    load_balance_loss: float = Field(
        0.01, ge=0, description="Weight of the load-balance loss (Switch, OLMoE: 0.01)."
    )
    router_z_loss: float = Field(
        0.0, ge=0, description="Weight of the router's squared log-normaliser (ST-MoE: 0.001)."
    )
    capacity_factor: float | None = Field(
        None,
        gt=0,
        description="An expert takes so many times its even share of a row's tokens and drops the rest; unset: none are dropped.",
    )
