"""What can be wrong with the options of latent attention; yields an option's path and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.config.choices import BiasKind
from maxlm.config.schema import ModelConfig

Found = Iterator[tuple[tuple[str, ...], str]]
_PARTS = ("query_latent_dim", "latent_rope_dim")


def latent_problems(model: ModelConfig) -> Found:
    """Widths that are missing, and what keys out of a latent cannot have."""
    if model.kv_latent_dim is None:
        for name in _PARTS:
            if getattr(model, name) is not None:
                yield (
                    ("model", name),
                    f"is {getattr(model, name)}, but model.kv_latent_dim is not set: set it for latent "
                    "attention, or remove this",
                )
        return
    head_dim = model.head_dim or model.embed_dim // model.num_heads
    rope = model.latent_rope_dim
    if rope is None or rope % 2 or rope >= head_dim:
        yield (
            ("model", "latent_rope_dim"),
            f"is {rope}, but latent attention turns a part of head_dim {head_dim} by rope, in pairs: "
            "set an even number below it",
        )
    if model.num_kv_heads not in (None, model.num_heads):
        yield (
            ("model", "num_kv_heads"),
            f"is {model.num_kv_heads}, but out of a latent every one of the {model.num_heads} query heads "
            "has keys and values of its own: remove it",
        )
    refused = {
        "qk_norm": (model.qk_norm, "has norms of the latents"),
        "rope_fraction": (model.rope_fraction != 1, "turns latent_rope_dim of a head"),
        "attention_bias": (
            model.attention_bias is BiasKind.QKV,
            "has biases on the maps from and to the residual stream (all) or none",
        ),
    }
    for name, (is_set, instead) in refused.items():
        if is_set:
            yield (
                ("model", name),
                f"{getattr(model, name)} does not fit latent attention (model.kv_latent_dim), which "
                f"{instead}",
            )
