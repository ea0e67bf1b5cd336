"""DeepSeek-V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437): latent attention, groups of experts.

Heads hold the part that RoPE does not turn before the one that it does, and have its pairs of dims side
by side; the map into the latent of keys and values makes the rotated key too. V3's files carry a module
for predicting one token more, of which the decoder needs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.choices import RopeScalingKind, RouterScoring
from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError
from maxlm.interop.families.llama import (
    ATTENTION,
    ENDS,
    LAYER,
    MLP,
    NORMS_BEFORE,
    UNUSED,
    sizes,
    usual,
)
from maxlm.interop.families.mixtures import expert_rules
from maxlm.interop.family import Family, Rule, Setting
from maxlm.interop.rope_settings import Rope, rope_parameters, yarn_scale
from maxlm.interop.settings import BIASES, Chosen, Fixed, SaidElsewhere, Same, value_of
from maxlm.interop.transforms import HeadParts, Matrix, Vector
from maxlm.model.rope import attention_factor


@dataclass(frozen=True)
class _HeadWidths:
    """Widths of the two parts of a query and of a value."""

    keys: tuple[str, ...] = (
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        # What transformers derives and writes down too.
        "head_dim",
        "qk_head_dim",
    )

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`head_dim`, of both parts, `latent_rope_dim` and `value_head_dim`."""
        rope = value_of(theirs, "qk_rope_head_dim", 64)
        return {
            "head_dim": value_of(theirs, "qk_nope_head_dim", 128) + rope,
            "latent_rope_dim": rope,
            "value_head_dim": value_of(theirs, "v_head_dim", 128),
        }

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys; none for a model whose attention is another."""
        if model.latent_rope_dim is None or model.head_dim is None:
            return {}
        return {
            "qk_nope_head_dim": model.head_dim - model.latent_rope_dim,
            "qk_rope_head_dim": model.latent_rope_dim,
            "v_head_dim": model.value_head_dim or model.head_dim,
        }


@dataclass(frozen=True)
class _LatentRope(Rope):
    """RoPE whose YaRN, by `mscale_all_dim`, scales attention logits too: by yarn_scale²."""

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """As of `Rope`, and `attention_scale`."""
        fields = super().read(theirs)
        given, _, _ = rope_parameters(theirs)
        scaling, every_dim = fields["rope_scaling"], given.get("mscale_all_dim")
        fields["attention_scale"] = None
        if scaling.kind is not RopeScalingKind.NONE and every_dim:
            width = _HeadWidths().read(theirs)["head_dim"]
            fields["attention_scale"] = width**-0.5 * yarn_scale(scaling.factor, every_dim) ** 2
        return fields

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """As of `Rope`, with the two mscales that give the attention's scale and factor."""
        keys, scaling = super().write(model), model.rope_scaling
        is_yarn = scaling.kind is RopeScalingKind.YARN and scaling.factor > 1
        if is_yarn and model.attention_scale is not None and model.head_dim:
            sharper = (model.attention_scale * model.head_dim**0.5) ** 0.5
            numbers = {"mscale_all_dim": sharper}
            if keys["rope_scaling"].pop("attention_factor", None) is not None:
                numbers["mscale"] = attention_factor(scaling) * sharper
            unit = yarn_scale(scaling.factor) - 1
            # 12 digits: what was 0.707 is 0.707 again.
            keys["rope_scaling"] |= {n: round((x - 1) / unit, 12) for n, x in numbers.items()}
        return keys


@dataclass(frozen=True)
class _Groups:
    """Groups of experts among which a token's are chosen.

    Attributes:
        limited: what `topk_method` calls that.
        plain: what it calls a choice among all; None: nothing, it is a choice among one group.
        groups: `n_group` where config.json has none.
        chosen: `topk_group` likewise.
    """

    limited: str
    plain: str | None
    groups: int = 1
    chosen: int = 1
    keys: tuple[str, ...] = ("n_group", "topk_group", "topk_method")

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """`router_groups` and `router_groups_per_token`. Raises ConfigError for another method."""
        method = value_of(theirs, "topk_method", self.plain or self.limited)
        if method not in (self.limited, self.plain):
            raise ConfigError(
                f"topk_method: {method!r} is not supported, only {self.limited!r}"
                + (f" and {self.plain!r} are" if self.plain else " is")
            )
        if method == self.plain:
            return {"router_groups": 1, "router_groups_per_token": 1}
        return {
            "router_groups": value_of(theirs, "n_group", self.groups),
            "router_groups_per_token": value_of(theirs, "topk_group", self.chosen),
        }

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The keys."""
        whole = self.plain is not None and model.router_groups == 1
        return {
            "n_group": model.router_groups,
            "topk_group": model.router_groups_per_token,
            "topk_method": self.plain if whole else self.limited,
        }


def _settings(*, dense: int) -> tuple[Setting, ...]:
    return (
        *sizes(),
        *usual(),
        _HeadWidths(),
        _LatentRope(),
        Same("kv_lora_rank", "kv_latent_dim", 512),
        Same("q_lora_rank", "query_latent_dim", 1536, null=True),
        Chosen("attention_bias", "attention_bias", BIASES, False),
        Same("num_experts_per_tok", "experts_per_token", 8),
        Same("first_k_dense_replace", "dense_layers", dense),
        Fixed("moe_layer_freq", 1, written=False),
        # How it was trained and spread out; and how many tokens more V3's module predicts.
        SaidElsewhere(("aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers")),
    )


_LATENT = "attention.query_latent.kernel"
_QUERIES = ("attention.query.kernel", "attention.query_rope.kernel")
_INTO = ("attention.latent", "attention.key_rope")
_PAIRS = HeadParts(rope_pairs=True)
_RULES = (
    *ENDS,
    *NORMS_BEFORE,
    Rule(ATTENTION + "q_proj.weight", _QUERIES, _PAIRS, without=_LATENT),
    Rule(ATTENTION + "q_a_proj.weight", (_LATENT,), Matrix()),
    Rule(ATTENTION + "q_a_proj.bias", ("attention.query_latent.bias",), Vector()),
    Rule(ATTENTION + "q_a_layernorm.weight", ("attention.query_latent_norm.scale",), Vector()),
    Rule(ATTENTION + "q_b_proj.weight", _QUERIES, _PAIRS, beside=_LATENT),
    *(
        Rule(f"{ATTENTION}kv_a_proj_with_mqa.{theirs}", tuple(f"{o}.{part}" for o in _INTO), _PAIRS)
        for theirs, part in (("weight", "kernel"), ("bias", "bias"))
    ),
    Rule(ATTENTION + "kv_a_layernorm.weight", ("attention.latent_norm.scale",), Vector()),
    Rule(
        ATTENTION + "kv_b_proj.weight",
        ("attention.key.kernel", "attention.value.kernel"),
        HeadParts(),
    ),
    Rule(ATTENTION + "o_proj.weight", ("attention.output.kernel",), Matrix()),
    Rule(ATTENTION + "o_proj.bias", ("attention.output.bias",), Vector()),
    *MLP,
    *expert_rules("mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}),
    *(
        Rule(f"{LAYER}mlp.shared_experts.{n}_proj.weight", (f"mlp.shared.{n}.kernel",), Matrix())
        for n in ("gate", "up", "down")
    ),
)
DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    model_type="deepseek_v2",
    fixed={"router_normalize": False},
    settings=(
        *_settings(dense=0),
        Same("n_routed_experts", "num_experts", 64),
        Same("n_shared_experts", "shared_experts", 2),
        Same("moe_intermediate_size", "expert_mlp_dim", 1407),
        Same("routed_scaling_factor", "router_scale", 1.0),
        _Groups("group_limited_greedy", "greedy"),
        Fixed("scoring_func", "softmax", written=False),
        Fixed("norm_topk_prob", False),
        Fixed("mlp_bias", False, written=False),
    ),
    rules=_RULES,
    unused=UNUSED,
)
DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    # The rate is the published one; config.json does not say it.
    fixed={"router_scoring": RouterScoring.SIGMOID, "router_bias_rate": 0.001},
    settings=(
        *_settings(dense=3),
        Same("n_routed_experts", "num_experts", 256),
        Same("n_shared_experts", "shared_experts", 1),
        Same("moe_intermediate_size", "expert_mlp_dim", 2048),
        Same("routed_scaling_factor", "router_scale", 2.5),
        Same("norm_topk_prob", "router_normalize", True),
        _Groups("noaux_tc", None, groups=8, chosen=4),
        Fixed("scoring_func", "sigmoid", written=False),
        Fixed("rope_interleave", True, written=False),
    ),
    rules=(
        *_RULES,
        Rule(LAYER + "mlp.gate.e_score_correction_bias", ("mlp.router.bias",), Vector()),
    ),
    # A block beyond the last predicts one token further (multi-token prediction); generation needs none.
    unused=(*UNUSED, r"model\.layers\.{num_layers}\..*"),
)
