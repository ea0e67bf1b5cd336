"""The attention that a model calls: chooses an implementation and runs it on each device's shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax

from maxlm.config.choices import AttentionKernel
from maxlm.kernels.attention.choose import choose
from maxlm.kernels.attention.chunked import chunked_attention
from maxlm.kernels.attention.cudnn import cudnn_attention
from maxlm.kernels.attention.features import AttentionCall, Hardware, hardware_of
from maxlm.kernels.attention.reference import reference_attention
from maxlm.kernels.attention.splash import splash_attention
from maxlm.parallel.axes import over_shards


@jax.tree_util.register_static
@dataclass(frozen=True)
class AttentionSettings:
    """What decides the implementation beside the call itself.

    Attributes:
        forced: by `parallel.attention`.
        hardware: what the program is compiled for; None: this machine's first device.
    """

    forced: AttentionKernel = AttentionKernel.AUTO
    hardware: Hardware | None = None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segment_ids: jax.Array,
    window: int | None = None,
    logit_cap: float | None = None,
    sinks: jax.Array | None = None,
    settings: AttentionSettings | None = None,
) -> jax.Array:
    """Causal self-attention of whole packed rows.

    Rows lie over the data axes and heads over `tensor`; each device computes its own, with the
    tokens of its rows all there. The output and the log-sum-exp, which the backward pass needs, are
    named `attention_out` and `attention_lse` for rematerialisation.

    Args:
        query: `[B, T, H, C]`.
        key: `[B, T, K, C]`, where H is a multiple of K.
        value: `[B, T, K, V]`; V is C in most models.
        segment_ids: `[B, T]` int32; a document's tokens are adjacent, 0 is padding.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap `cap × tanh(logits / cap)`.
        sinks: `[H]` logits in the softmax's denominator, see `sinks.py`; None: none.
        settings: what else decides the implementation.

    Returns:
        `[B, T, H, V]`, as `reference_attention` defines it.

    Raises:
        ParallelError: the config forces an implementation that cannot do this, or heads do not
            divide over `tensor`.
    """
    arrays: tuple[jax.Array, ...] = (query, key, value, segment_ids)
    queries, keys = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    axes: tuple[tuple[str | None, ...], ...] = (queries, keys, keys, ("batch", None))
    if sinks is not None:
        arrays, axes = (*arrays, sinks), (*axes, ("heads",))
    run = implementation(*arrays, window=window, logit_cap=logit_cap, settings=settings)
    return over_shards(run, axes, queries)(*arrays)


def implementation(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None,
    logit_cap: float | None,
    settings: AttentionSettings | None,
) -> Callable[..., jax.Array]:
    """The chosen implementation, a function of one device's arrays in this order.

    Args:
        query: `[B, T, H, C]`, of which, as of all arrays, only shape and dtype matter.
        key: `[B, T, K, C]`.
        value: `[B, T, K, V]`.
        segment_ids: `[B, T]` int32.
        sinks: `[H]`, or None.
        window: as in `attention`.
        logit_cap: as in `attention`.
        settings: as in `attention`.

    Raises:
        ParallelError: the config forces an implementation that cannot do this.
    """
    settings = settings or AttentionSettings()
    call = AttentionCall(
        length=query.shape[1],
        num_heads=query.shape[2],
        num_kv_heads=key.shape[2],
        head_dim=query.shape[3],
        dtype=query.dtype.name,
        window=window,
        logit_cap=logit_cap,
        value_dim=value.shape[3],
        sinks=sinks is not None,
    )
    choice = choose(call, settings.hardware or hardware_of(), settings.forced)
    return partial(_IMPLEMENTATIONS[choice.kernel], window=window, logit_cap=logit_cap)


def _reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None,
    logit_cap: float | None,
) -> jax.Array:
    return reference_attention(
        query,
        key,
        value,
        query_segments=segment_ids,
        key_segments=segment_ids,
        window=window,
        logit_cap=logit_cap,
        sinks=sinks,
    )


_IMPLEMENTATIONS: dict[AttentionKernel, Callable[..., jax.Array]] = {
    AttentionKernel.REFERENCE: _reference,
    AttentionKernel.CHUNKED: chunked_attention,
    AttentionKernel.SPLASH: splash_attention,
    AttentionKernel.CUDNN: cudnn_attention,
}
