"""Mixtures of experts: Mixtral (arXiv:2401.04088) and Qwen3-MoE (arXiv:2505.09388)."""

from __future__ import annotations

from maxlm.interop.families.llama import (
    ENDS,
    HEAD_NORMS,
    LAYER,
    MLP,
    NORMS_BEFORE,
    PROJECTIONS,
    UNUSED,
    sizes,
    usual,
)
from maxlm.interop.family import Family, Rule
from maxlm.interop.position_settings import Window
from maxlm.interop.rope_settings import Rope
from maxlm.interop.settings import BIASES, Chosen, Derived, Fixed, HeadDim, Same
from maxlm.interop.transforms import Matrix


def expert_rules(block: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """The router and, of each expert, the tensors of these names (ours → theirs)."""
    return (
        Rule(f"{LAYER}{block}.gate.weight", ("mlp.router.kernel",), Matrix()),
        *(
            Rule(
                f"{LAYER}{block}.experts.{{expert}}.{theirs}.weight",
                (f"mlp.{ours}.kernel",),
                Matrix(),
            )
            for ours, theirs in names.items()
        ),
    )


MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    fixed={},
    settings=(
        *sizes(kv_heads=8),
        *usual(epsilon=1e-5),
        HeadDim(),
        Rope(theta=1_000_000.0),
        Window(),
        Same("num_local_experts", "num_experts", 8),
        Same("num_experts_per_tok", "experts_per_token", 2),
        Derived("expert_mlp_dim", lambda theirs: theirs["intermediate_size"]),
    ),
    rules=(
        *ENDS,
        *PROJECTIONS,
        *NORMS_BEFORE,
        *expert_rules("block_sparse_moe", {"gate": "w1", "down": "w2", "up": "w3"}),
    ),
    unused=UNUSED,
)
QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    fixed={"qk_norm": True},
    settings=(
        *sizes(kv_heads=4),
        *usual(),
        HeadDim(),
        Rope(),
        Window(flag=True, default=4096),
        Chosen("attention_bias", "attention_bias", BIASES, False),
        Same("num_experts", "num_experts", 128),
        Same("num_experts_per_tok", "experts_per_token", 8),
        Same("moe_intermediate_size", "expert_mlp_dim", 768),
        Same("norm_topk_prob", "router_normalize", False),
        Same("decoder_sparse_step", "expert_every", 1),
        Fixed("mlp_only_layers", []),
    ),
    rules=(
        *ENDS,
        *PROJECTIONS,
        *HEAD_NORMS,
        *NORMS_BEFORE,
        *MLP,
        *expert_rules("mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}),
    ),
    unused=UNUSED,
)
