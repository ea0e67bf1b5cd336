"""gpt-oss (arXiv:2508.10925): sinks, clamped experts with biases, a window in every other layer.

All experts of a layer are one tensor, gate and up in turns along its last dim, `[in, out]`. Published
files hold them in MXFP4, which is refused with what to do; here they are as transformers writes them
in bfloat16.
"""

from __future__ import annotations

from maxlm.config.choices import Activation, MLPKind
from maxlm.interop.families.llama import (
    ATTENTION,
    ENDS,
    LAYER,
    NORMS_BEFORE,
    PROJECTIONS,
    UNUSED,
    sizes,
)
from maxlm.interop.family import Family, Rule
from maxlm.interop.position_settings import Window
from maxlm.interop.rope_settings import Rope
from maxlm.interop.settings import BIASES, Chosen, Derived, Fixed, HeadDim, SaidElsewhere, Same
from maxlm.interop.transforms import Alternating, Matrix, Table, Vector

_EXPERTS = LAYER + "mlp.experts."


def _joint(theirs: str, ours: tuple[str, ...], transform: Alternating | Table) -> Rule:
    return Rule(_EXPERTS + theirs, ours, transform, all_experts=True)


GPT_OSS = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    fixed={
        "mlp": MLPKind.GATED_SHIFTED,
        "activation": Activation.QUICK_GELU,
        "mlp_bias": True,
        "attention_sinks": True,
        "router_logit_bias": True,
    },
    settings=(
        *sizes(kv_heads=8),
        Same("rms_norm_eps", "norm_epsilon", 1e-5),
        Same("tie_word_embeddings", "tie_embeddings", False),
        HeadDim(default=64),
        Rope(theta=150_000.0, required=True),
        Window(period=2, default=128),
        Chosen("attention_bias", "attention_bias", BIASES, True),
        Same("num_local_experts", "num_experts", 128),
        Same("num_experts_per_tok", "experts_per_token", 4),
        Derived("expert_mlp_dim", lambda theirs: theirs["intermediate_size"]),
        Same("swiglu_limit", "mlp_limit", 7.0),
        # What its code computes is said by these, whatever hidden_act is called.
        Fixed("swiglu_alpha", 1.702, written=False),
        Fixed("hidden_act", "silu"),
        SaidElsewhere(("experts_per_token", "initial_context_length")),
    ),
    rules=(
        *ENDS,
        *PROJECTIONS,
        Rule(ATTENTION + "sinks", ("attention.sinks",), Vector()),
        *NORMS_BEFORE,
        Rule(LAYER + "mlp.router.weight", ("mlp.router.kernel",), Matrix()),
        Rule(LAYER + "mlp.router.bias", ("mlp.router.logit_bias",), Vector()),
        _joint("gate_up_proj", ("mlp.gate.kernel", "mlp.up.kernel"), Alternating()),
        _joint("gate_up_proj_bias", ("mlp.gate.bias", "mlp.up.bias"), Alternating()),
        _joint("down_proj", ("mlp.down.kernel",), Table()),
        _joint("down_proj_bias", ("mlp.down.bias",), Table()),
    ),
    unused=UNUSED,
)
