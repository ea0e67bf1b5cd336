"""The call of attention that a layer of a model makes, for those who ask who will compute it."""

from __future__ import annotations

from maxlm.config.choices import AttentionSpan
from maxlm.config.head_widths import value_dim
from maxlm.config.schema import ModelConfig
from maxlm.kernels.attention.features import AttentionCall


def attention_call(
    model: ModelConfig, span: AttentionSpan, *, length: int, heads: tuple[int, int], dtype: str
) -> AttentionCall:
    """Of a layer that looks so far.

    Args:
        model: resolved.
        span: of the layer.
        length: tokens of a row.
        heads: query and key-value heads of a device.
        dtype: of queries, keys and values.
    """
    assert model.head_dim
    return AttentionCall(
        length=length,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=model.head_dim,
        dtype=dtype,
        window=model.attention_window if span is AttentionSpan.LOCAL else None,
        logit_cap=model.attention_logit_cap,
        value_dim=value_dim(model),
        sinks=model.attention_sinks,
    )
