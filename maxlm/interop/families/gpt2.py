"""GPT-2 (Radford et al., 2019): learned positions, layer norms, biases everywhere, `[in, out]` matrices."""

from __future__ import annotations

from maxlm.config.choices import BiasKind, MLPKind, NormKind, PositionKind
from maxlm.interop.family import Family, Rule
from maxlm.interop.settings import ACTIVATIONS, Chosen, Derived, Fixed, Same
from maxlm.interop.transforms import Matrix, Table, Vector

LAYER = "transformer.h.{layer}."
QKV = ("query", "key", "value")
# Theirs → ours, each with a weight and a bias.
_LINEAR = {
    "attn.c_attn": tuple(f"attention.{name}" for name in QKV),
    "attn.c_proj": ("attention.output",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}
_NORMS = {LAYER + "ln_1": "attention_norm", LAYER + "ln_2": "mlp_norm"}
_NORMS |= {"transformer.ln_f": "final_norm"}
GPT2_ACTIVATIONS = {"gelu_new": ACTIVATIONS["gelu_new"]} | ACTIVATIONS

GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    fixed={
        "mlp": MLPKind.PLAIN,
        "norm": NormKind.LAYER,
        "norm_bias": True,
        "positions": PositionKind.LEARNED,
        "attention_bias": BiasKind.ALL,
        "mlp_bias": True,
    },
    settings=(
        Same("vocab_size", "vocab_size", 50257),
        Same("n_positions", "max_length", 1024),
        Same("n_embd", "embed_dim", 768),
        Same("n_layer", "num_layers", 12),
        Same("n_head", "num_heads", 12),
        Same("n_inner", "mlp_dim", lambda theirs: 4 * theirs.get("n_embd", 768)),
        Derived("num_kv_heads", lambda theirs: theirs.get("n_head", 12)),
        Derived("head_dim", lambda theirs: theirs.get("n_embd", 768) // theirs.get("n_head", 12)),
        Chosen("activation_function", "activation", GPT2_ACTIVATIONS, "gelu_new"),
        Same("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Same("initializer_range", "init_std", 0.02),
        Same("tie_word_embeddings", "tie_embeddings", True),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False, written=False),
    ),
    rules=(
        Rule("transformer.wte.weight", ("embedding",), Table()),
        Rule("transformer.wpe.weight", ("positions",), Table()),
        Rule("lm_head.weight", ("head",), Table()),
        *(
            Rule(f"{theirs}.{their_part}", (f"{ours}.{part}",), Vector())
            for theirs, ours in _NORMS.items()
            for their_part, part in (("weight", "scale"), ("bias", "bias"))
        ),
        *(
            Rule(f"{LAYER}{theirs}.{name}", tuple(f"{o}.{part}" for o in ours), transform)
            for theirs, ours in _LINEAR.items()
            for name, part, transform in (
                ("weight", "kernel", Matrix(out_first=False)),
                ("bias", "bias", Vector()),
            )
        ),
    ),
    prefix="transformer.",
    unused=(r".*attn\.bias", r".*attn\.masked_bias"),
)
