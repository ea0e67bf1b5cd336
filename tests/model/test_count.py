import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.schema import ExpertMatmul, ModelConfig
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.model.count import (
    count_matmul_parameters,
    count_non_embedding_parameters,
    count_parameters,
    train_flops_per_token,
)
from maxlm.model.decoder import Execution, padded_vocab
from maxlm.model.definition import define
from maxlm.model.parameter import Kind

GPT2 = {
    "vocab_size": 50257,
    "num_layers": 12,
    "embed_dim": 768,
    "num_heads": 12,
    "num_kv_heads": 12,
    "head_dim": 64,
    "mlp_dim": 3072,
    "mlp": "plain",
    "activation": "gelu_tanh",
    "norm": "layer",
    "norm_bias": True,
    "positions": "learned",
    "max_length": 1024,
    "attention_bias": "all",
    "mlp_bias": True,
    "tie_embeddings": True,
}
LLAMA3_8B = {
    "vocab_size": 128256,
    "num_layers": 32,
    "embed_dim": 4096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "mlp_dim": 14336,
    "tie_embeddings": False,
    "rope_theta": 500_000,
}
QWEN3_06B = {
    "vocab_size": 151936,
    "num_layers": 28,
    "embed_dim": 1024,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "mlp_dim": 3072,
    "tie_embeddings": True,
    "qk_norm": True,
}
PUBLISHED = {"gpt2": (GPT2, 124_439_808), "llama3-8b": (LLAMA3_8B, 8_030_261_248)}
PUBLISHED["qwen3-0.6b"] = (QWEN3_06B, 596_049_920)
PUBLISHED["mixtral-8x7b"] = (
    LLAMA3_8B
    | {"vocab_size": 32000, "num_experts": 8, "experts_per_token": 2, "expert_mlp_dim": 14336},
    46_702_792_704,
)
PUBLISHED["qwen3-30b-a3b"] = (
    QWEN3_06B
    | {
        "num_layers": 48,
        "embed_dim": 2048,
        "num_heads": 32,
        "num_kv_heads": 4,
        "tie_embeddings": False,
        "num_experts": 128,
        "experts_per_token": 8,
        "expert_mlp_dim": 768,
    },
    30_532_122_624,
)
TINY = {
    "vocab_size": 200,
    "num_layers": 5,
    "embed_dim": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 96,
}
VARIANTS = [
    {},
    {"tie_embeddings": False},
    {"norm": "layer", "norm_bias": True, "norm_placement": "both", "embed_norm": True},
    {"norm_placement": "post", "qk_norm": True, "qk_norm_width": "projection"},
    {"qk_norm": True, "rope_fraction": 0.5, "attention_scale": 0.1},
    {"mlp": "plain", "mlp_bias": True, "attention_bias": "qkv"},
    {"positions": "learned", "max_length": 32, "attention_bias": "all", "mlp_bias": True},
    {"attention_pattern": ["local", "global"], "attention_window": 8},
    {"rope_pattern": [True, True, False], "attention_pattern": ["local", "global"]}
    | {"attention_window": 8},
    {"num_experts": 4, "expert_mlp_dim": 40},
    {
        "num_experts": 6,
        "experts_per_token": 3,
        "expert_mlp_dim": 24,
        "shared_experts": 2,
        "dense_layers": 2,
        "router_bias_rate": 0.01,
        "mlp_bias": True,
    },
    {
        "num_experts": 4,
        "expert_mlp_dim": 40,
        "mlp": "gated_shifted",
        "mlp_limit": 7.0,
        "attention_sinks": True,
        "router_logit_bias": True,
    },
    {"value_head_dim": 24, "attention_bias": "qkv"},
    {
        "num_kv_heads": 4,
        "head_dim": 24,
        "value_head_dim": 20,
        "kv_latent_dim": 12,
        "query_latent_dim": 28,
        "latent_rope_dim": 8,
        "attention_bias": "all",
        "num_experts": 8,
        "expert_mlp_dim": 24,
        "router_groups": 4,
        "router_groups_per_token": 2,
        "dense_layers": 1,
    },
    {"num_kv_heads": 4, "kv_latent_dim": 12, "latent_rope_dim": 4},
    {
        "num_experts": 4,
        "expert_mlp_dim": 40,
        "expert_every": 2,
        "mlp": "plain",
        "attention_pattern": ["local", "local", "global"],
        "attention_window": 8,
    },
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts_are_exact(name):
    shape, published = PUBLISHED[name]
    assert count_parameters(ModelConfig(**shape)) == published


@pytest.mark.parametrize("variant", VARIANTS)
def test_arithmetic_counts_what_the_modules_declare(variant):
    config = ModelConfig(**(TINY | variant))
    declared = define(config).parameters
    padding = (padded_vocab(config) - config.vocab_size) * config.embed_dim
    padded_tables = 1 if config.tie_embeddings else 2
    total = sum(info.size for info in declared.values()) - padding * padded_tables
    assert count_parameters(config) == total
    tables = {n: i for n, i in declared.items() if i.kind in (Kind.EMBEDDING, Kind.HEAD)}
    rest = sum(info.size for name, info in declared.items() if name not in tables)
    embed_norm = config.embed_dim * 2 if config.embed_norm else 0
    assert count_non_embedding_parameters(config) == rest - embed_norm


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_three_times_the_forward_matmuls_of_the_traced_program(variant):
    # vocab_multiple 1: padding is never counted; causal halving is undone for full scores.
    config = ModelConfig(**(TINY | variant | {"vocab_multiple": 1}))
    # Of experts, one matmul with as many rows as tokens visit them, as a TPU runs it.
    model = define(config, Execution(experts=ExpertKernels(ExpertMatmul.RAGGED_DOT)))
    batch_size, length = 2, 32
    shapes = jax.eval_shape(lambda: _init(model))
    batch = Batch(*[jax.ShapeDtypeStruct((batch_size, length), np.int32)] * 5)
    traced = jax.make_jaxpr(lambda p, b: model.bind(p).logits(b))(shapes, batch)
    forward = _matmul_flops(traced.jaxpr)
    widths = config.head_dim + (config.value_head_dim or config.head_dim)
    full = config.num_layers * 2 * length * config.num_heads * widths
    expected = 2 * count_matmul_parameters(config) + full
    assert forward == expected * batch_size * length
    window = config.attention_window or length
    locals_ = sum(
        config.attention_pattern[i % len(config.attention_pattern)] == "local"
        for i in range(config.num_layers)
    )
    seen = (config.num_layers - locals_) * length + locals_ * min(window, length)
    attention = 3 * seen * config.num_heads * widths
    matmuls = 6 * count_matmul_parameters(config)
    assert train_flops_per_token(config, length) == matmuls + attention


def _init(model):
    arrays = model.parameters | model.variables
    return {name: jax.numpy.zeros(info.shape, np.float32) for name, info in arrays.items()}


def _matmul_flops(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[d] for d in contracted])
            total += 2 * int(np.prod(equation.outvars[0].aval.shape)) * int(depth)
        if equation.primitive.name.startswith("ragged_dot"):
            rows, matrices = (value.aval.shape for value in equation.invars[:2])
            total += 2 * rows[0] * matrices[1] * matrices[2]
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value if hasattr(value, "eqns") else None)
            if inner is not None and hasattr(inner, "eqns"):
                total += repeats * _matmul_flops(inner)
    return total
