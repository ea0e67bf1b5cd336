"""Llama and those that differ from it by a norm, a bias or a window (dense, RMS norms before).

SmolLM and SmolLM2 are Llamas by name too.
"""

from __future__ import annotations

from maxlm.config.choices import BiasKind, NormPlacement, QKNormWidth
from maxlm.interop.family import Family, Rule, Setting
from maxlm.interop.position_settings import LayersWithRope, Window
from maxlm.interop.rope_settings import Rope
from maxlm.interop.settings import ACTIVATIONS, BIASES, Chosen, Fixed, HeadDim, Same
from maxlm.interop.transforms import Matrix, Table, Vector

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."
UNUSED = (r".*rotary_emb\.inv_freq",)


def sizes(*, kv_heads: int | None = None) -> tuple[Setting, ...]:
    """What every config.json of this kind says; `kv_heads` where it does not say that."""
    return (
        Same("vocab_size", "vocab_size"),
        Same("hidden_size", "embed_dim"),
        Same("intermediate_size", "mlp_dim"),
        Same("num_hidden_layers", "num_layers"),
        Same("num_attention_heads", "num_heads"),
        Same(
            "num_key_value_heads",
            "num_kv_heads",
            kv_heads or (lambda theirs: theirs["num_attention_heads"]),
        ),
        Same("max_position_embeddings", "max_length", 2048),
        Same("initializer_range", "init_std", 0.02),
    )


def usual(*, epsilon: float = 1e-6, tied: bool = False) -> tuple[Setting, ...]:
    """Activation, epsilon of norms and tying, with what absent keys mean."""
    return (
        Chosen("hidden_act", "activation", ACTIVATIONS, "silu"),
        Same("rms_norm_eps", "norm_epsilon", epsilon),
        Same("tie_word_embeddings", "tie_embeddings", tied),
    )


ENDS = (
    Rule("model.embed_tokens.weight", ("embedding",), Table()),
    Rule("model.norm.weight", ("final_norm.scale",), Vector()),
    Rule("lm_head.weight", ("head",), Table()),
)
PROJECTIONS = tuple(
    rule
    for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "output"}.items()
    for rule in (
        Rule(f"{ATTENTION}{theirs}_proj.weight", (f"attention.{ours}.kernel",), Matrix()),
        Rule(f"{ATTENTION}{theirs}_proj.bias", (f"attention.{ours}.bias",), Vector()),
    )
)
HEAD_NORMS = (
    Rule(ATTENTION + "q_norm.weight", ("attention.query_norm.scale",), Vector()),
    Rule(ATTENTION + "k_norm.weight", ("attention.key_norm.scale",), Vector()),
)
NORMS_BEFORE = (
    Rule(LAYER + "input_layernorm.weight", ("attention_norm.scale",), Vector()),
    Rule(LAYER + "post_attention_layernorm.weight", ("mlp_norm.scale",), Vector()),
)
MLP = tuple(
    rule
    for name in ("gate", "up", "down")
    for rule in (
        Rule(f"{LAYER}mlp.{name}_proj.weight", (f"mlp.{name}.kernel",), Matrix()),
        Rule(f"{LAYER}mlp.{name}_proj.bias", (f"mlp.{name}.bias",), Vector()),
    )
)
LLAMA_RULES = ENDS + PROJECTIONS + NORMS_BEFORE + MLP

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fixed={},
    settings=(
        *sizes(),
        *usual(),
        HeadDim(),
        Rope(),
        Chosen("attention_bias", "attention_bias", BIASES, False),
        Same("mlp_bias", "mlp_bias", False),
    ),
    rules=LLAMA_RULES,
    unused=UNUSED,
)
MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    fixed={},
    settings=(*sizes(kv_heads=8), *usual(), HeadDim(), Rope(), Window(default=4096)),
    rules=LLAMA_RULES,
    unused=UNUSED,
)
QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    fixed={"attention_bias": BiasKind.QKV},
    settings=(
        *sizes(kv_heads=32),
        *usual(),
        HeadDim(),
        Rope(),
        Window(flag=True, default=4096),
        Fixed("use_mrope", False, written=False),
    ),
    rules=LLAMA_RULES,
    unused=UNUSED,
)
QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    fixed={"qk_norm": True},
    settings=(
        *sizes(kv_heads=32),
        *usual(),
        HeadDim(default=128),
        Rope(),
        Window(flag=True, default=4096),
        Chosen("attention_bias", "attention_bias", BIASES, False),
    ),
    rules=LLAMA_RULES + HEAD_NORMS,
    unused=UNUSED,
)
# Every fourth layer has no positions (arXiv:2501.18795 is where that comes from).
SMOLLM3 = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    fixed={},
    settings=(
        *sizes(kv_heads=4),
        *usual(tied=True),
        HeadDim(),
        Rope(theta=2_000_000.0),
        Window(flag=True, without_rope=True),
        LayersWithRope(),
        Chosen("attention_bias", "attention_bias", BIASES, False),
        Same("mlp_bias", "mlp_bias", False),
    ),
    rules=LLAMA_RULES,
    unused=UNUSED,
)
# Norms after the sublayers alone, and of all heads together (arXiv:2501.00656).
OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    fixed={
        "qk_norm": True,
        "qk_norm_width": QKNormWidth.PROJECTION,
        "norm_placement": NormPlacement.POST,
    },
    settings=(
        *sizes(),
        *usual(epsilon=1e-5),
        HeadDim(),
        Rope(),
        Chosen("attention_bias", "attention_bias", BIASES, False),
    ),
    rules=(
        *ENDS,
        *PROJECTIONS,
        *HEAD_NORMS,
        Rule(LAYER + "post_attention_layernorm.weight", ("attention_post_norm.scale",), Vector()),
        Rule(LAYER + "post_feedforward_layernorm.weight", ("mlp_post_norm.scale",), Vector()),
        *MLP,
    ),
    unused=UNUSED,
)
# Joint projections (arXiv:2404.14219); Phi-4 says phi3 too.
PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    fixed={},
    settings=(
        *sizes(),
        *usual(epsilon=1e-5),
        HeadDim(),
        Rope(original=4096, partial=True),
        Window(),
        Fixed("attention_bias", False, written=False),
        Fixed("mlp_bias", False, written=False),
        Fixed("lm_head_bias", False, written=False),
        # Of Phi-4-mini's own code: every layer attends as the others do, to tokens as they are.
        Fixed("full_attn_mod", 1, written=False),
        Fixed("interpolate_factor", 1, written=False),
    ),
    rules=(
        *ENDS,
        *NORMS_BEFORE,
        Rule(
            ATTENTION + "qkv_proj.weight",
            ("attention.query.kernel", "attention.key.kernel", "attention.value.kernel"),
            Matrix(),
        ),
        Rule(ATTENTION + "o_proj.weight", ("attention.output.kernel",), Matrix()),
        Rule(LAYER + "mlp.gate_up_proj.weight", ("mlp.gate.kernel", "mlp.up.kernel"), Matrix()),
        Rule(LAYER + "mlp.down_proj.weight", ("mlp.down.kernel",), Matrix()),
    ),
    unused=UNUSED,
)
