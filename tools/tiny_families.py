"""Tiny models of every family, as folders that transformers and maxlm both read.

In: a family's name here; out: a folder with config.json and weights drawn so that nothing hides:
every norm scale and every bias is random, logits have a standard deviation above 1, windows and RoPE's
original length are shorter than the prompts. The weights follow from their names, so that the same
model is made again without torch.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from maxlm.interop.registry import family_of_config, read_model
from maxlm.interop.safetensors import write_tensors
from maxlm.interop.tensors import tensors_of
from maxlm.model.definition import define

VOCAB, LENGTH = 97, 40
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA = {**_SHAPE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
_GEMMA = {
    **_SHAPE,
    "num_hidden_layers": 5,  # no multiple of the pattern: a remainder is left
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


def _named(architecture: str, model_type: str, **keys: Any) -> dict[str, Any]:
    return {**_SHAPE, "architectures": [architecture], "model_type": model_type, **keys}


# What a person calls them → config.json.
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "llama2": {**_LLAMA, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama3": {**_LLAMA, "rope_theta": 500_000.0},
    "llama3.1": {**_LLAMA, "rope_theta": 500_000.0, "rope_scaling": _LLAMA3_SCALING},
    "smollm": {
        **_LLAMA,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral": _named("MistralForCausalLM", "mistral", sliding_window=7),
    "qwen2": _named(
        "Qwen2ForCausalLM",
        "qwen2",
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
    ),
    "qwen2.5": _named(
        "Qwen2ForCausalLM",
        "qwen2",
        tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3": _named(
        "Qwen3ForCausalLM", "qwen3", head_dim=20, rope_theta=1e6, tie_word_embeddings=True
    ),
    "gemma2": {
        **_GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        # Caps small enough to bend what these weights give.
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window_pattern": 3,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "olmo2": _named("Olmo2ForCausalLM", "olmo2", rope_theta=500_000.0),
    "phi3": _named("Phi3ForCausalLM", "phi3", num_key_value_heads=4, sliding_window=7),
    "phi4": _named(
        "Phi3ForCausalLM", "phi3", hidden_size=64, partial_rotary_factor=0.75, sliding_window=None
    ),
    "phi3_128k": _named(
        "Phi3ForCausalLM",
        "phi3",
        # So short that transformers takes the long factors for every text in the tests.
        original_max_position_embeddings=2,
        rope_scaling={
            "type": "longrope",
            # By the lengths it would be 32: attention so sharp that transformers' float32 is 1e-4 off
            # its own float64.
            "factor": 2.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 9.0, 20.0],
        },
    ),
    "phi4_mini": _named(
        "Phi3ForCausalLM",
        "phi3",
        hidden_size=64,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        original_max_position_embeddings=64,  # all that it takes: the short factors
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0, 1.2, 1.7, 2.9, 5.0, 8.0],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "attention_factor": 1.2,
        },
    ),
    "smollm3": _named(
        "SmolLM3ForCausalLM",
        "smollm3",
        num_hidden_layers=5,
        no_rope_layers=[1, 1, 0, 1, 1],
        use_sliding_window=True,
        sliding_window=7,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "mixtral": _named("MixtralForCausalLM", "mixtral", num_local_experts=6, num_experts_per_tok=2),
    "deepseek_v2": _named(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        **_LATENT,
        q_lora_rank=None,
        n_routed_experts=6,
        n_shared_experts=2,
        num_experts_per_tok=2,
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        routed_scaling_factor=0.7,
        rope_scaling=_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek_v3": _named(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        **_LATENT,
        q_lora_rank=20,
        attention_bias=True,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        rope_scaling=_YARN | {"mscale": 1.3, "mscale_all_dim": 0.6},
    ),
    "gpt_oss": _named(
        "GptOssForCausalLM",
        "gpt_oss",
        head_dim=16,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=7,
        swiglu_limit=1.5,  # small enough to clamp what these weights give
        rope_theta=1000.0,  # so that the range of indices is not the truncated one
        rope_scaling=_YARN | {"truncate": False},
    ),
    "qwen3_moe": _named(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        head_dim=20,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=False,
        decoder_sparse_step=2,  # of three layers, the second alone has experts
    ),
}


def write_folder(name: str, folder: Path, *, shard_bytes: int = 100_000, **changes: Any) -> None:
    """Write config.json, with `changes` to its keys, and weights, in several files, of one tiny model."""
    config = TINY[name] | changes
    family = family_of_config(config)
    model = define(read_model(family, config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = tensors_of(family, model)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    drawn = (
        (n, drawn_tensor(n, shape, offset_norms="gemma" in name)) for n, shape in shapes.items()
    )
    write_tensors(str(folder), shapes, np.dtype("float32"), drawn, shard_bytes=shard_bytes)


def drawn_tensor(name: str, shape: tuple[int, ...], *, offset_norms: bool) -> np.ndarray:
    """Values that follow from the name: `[…]` float32."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name or "ln_" in name:
        centre = 0.0 if offset_norms or name.endswith("bias") else 1.0
        values = centre + 0.4 * values
    elif name.endswith(("bias", "sinks")):
        values = 0.4 * values
    elif any(part in name for part in ("embed", "wte", "lm_head")):
        values = 3 * values / shape[1] ** 0.5
    elif "wpe" in name:
        values = 0.4 * values
    else:  # a map of as many inputs as its smaller side, near enough; before it there may be experts
        values = 1.5 * values / min(shape[-2:]) ** 0.5
    return values.astype(np.float32)


def tokenizer_of_words(size: int = VOCAB) -> str:
    """The text of a tokenizer.json of that many words, w0, w1 and so on, which these models have none of."""
    model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(size)}, "unk_token": "w0"}
    nothing = {"added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None}
    return json.dumps(
        {"version": "1.0", **nothing, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    )


def prompts() -> np.ndarray:
    """`[2, LENGTH]` int32 tokens, longer than windows and than RoPE's original length."""
    return np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
