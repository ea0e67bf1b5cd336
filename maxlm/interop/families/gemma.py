"""Gemma 2 (arXiv:2408.00118) and the text models of Gemma 3 (arXiv:2503.19786)."""

from __future__ import annotations

from maxlm.config.choices import NormPlacement
from maxlm.interop.families.llama import ATTENTION, LAYER, MLP, PROJECTIONS, UNUSED, sizes
from maxlm.interop.family import Family, Rule
from maxlm.interop.position_settings import Window
from maxlm.interop.rope_settings import Rope
from maxlm.interop.settings import (
    ACTIVATIONS,
    BIASES,
    Chosen,
    Derived,
    Fixed,
    HeadDim,
    QueryScale,
    Same,
)
from maxlm.interop.transforms import Table, Vector

GELU = {"gelu_pytorch_tanh": ACTIVATIONS["gelu_pytorch_tanh"]} | ACTIVATIONS
SCALED = Vector(offset=1.0)
_NORMS = {
    LAYER + "input_layernorm": "attention_norm",
    LAYER + "post_attention_layernorm": "attention_post_norm",
    LAYER + "pre_feedforward_layernorm": "mlp_norm",
    LAYER + "post_feedforward_layernorm": "mlp_post_norm",
    "model.norm": "final_norm",
}
_SHARED = (
    *sizes(kv_heads=4),
    Chosen("hidden_activation", "activation", GELU, "gelu_pytorch_tanh"),
    Same("rms_norm_eps", "norm_epsilon", 1e-6),
    Same("tie_word_embeddings", "tie_embeddings", True),
    HeadDim(default=256),
    QueryScale(default=256),
    Derived("embed_scale", lambda theirs: theirs["hidden_size"] ** 0.5),
    Chosen("attention_bias", "attention_bias", BIASES, False),
    # Beside hidden_activation, which is what counts.
    Fixed("hidden_act", "gelu_pytorch_tanh", written=False),
    Fixed("use_bidirectional_attention", False, written=False),
)
_RULES = (
    Rule("model.embed_tokens.weight", ("embedding",), Table()),
    Rule("lm_head.weight", ("head",), Table()),
    *(Rule(f"{theirs}.weight", (f"{ours}.scale",), SCALED) for theirs, ours in _NORMS.items()),
    *PROJECTIONS,
    *MLP,
)
GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    fixed={"norm_placement": NormPlacement.BOTH},
    settings=(
        *_SHARED,
        Rope(),
        Window(period=2, default=4096),
        Same("attn_logit_softcapping", "attention_logit_cap", 50.0, null=True),
        Same("final_logit_softcapping", "output_logit_cap", 30.0, null=True),
    ),
    rules=_RULES,
    unused=UNUSED,
)
GEMMA3 = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    fixed={"norm_placement": NormPlacement.BOTH, "qk_norm": True},
    settings=(
        *_SHARED,
        Rope(theta=1_000_000.0, local_theta=10_000.0),
        Window(period=6, default=4096),
        Same("attn_logit_softcapping", "attention_logit_cap", None),
        Same("final_logit_softcapping", "output_logit_cap", None),
    ),
    rules=(
        *_RULES,
        Rule(ATTENTION + "q_norm.weight", ("attention.query_norm.scale",), SCALED),
        Rule(ATTENTION + "k_norm.weight", ("attention.key_norm.scale",), SCALED),
    ),
    unused=UNUSED,
)
