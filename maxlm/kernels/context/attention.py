"""Causal attention whose rows lie over the mesh's context axis: what the model calls there."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from maxlm.config.choices import ContextAttention
from maxlm.kernels.attention.attend import AttentionSettings, implementation
from maxlm.kernels.context.all_gather import all_gather_attention
from maxlm.kernels.context.ring import ring_attention
from maxlm.kernels.context.ulysses import ulysses_attention
from maxlm.parallel.axes import partition_spec


def context_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segment_ids: jax.Array,
    method: ContextAttention,
    window: int | None = None,
    logit_cap: float | None = None,
    sinks: jax.Array | None = None,
    settings: AttentionSettings | None = None,
    names: tuple[str, ...] = (),
) -> jax.Array:
    """Self-attention of rows that lie over several devices of the mesh that is set.

    Args:
        query: `[B, T, H, C]`.
        key: `[B, T, K, C]`, where H is a multiple of K.
        value: `[B, T, K, V]`.
        segment_ids: `[B, T]` int32.
        method: how; for `ring` the tokens lie in zigzag order, else in their own.
        window: how many keys a query sees, itself included; None: all before it.
        logit_cap: soft cap of the scores.
        sinks: `[H]` logits in the softmax's denominator; None: none.
        settings: with the heads of a device, what decides who computes them under `ulysses`; the
            other methods have one implementation.
        names: which of `query`, `key` and `value` `ulysses` names so for rematerialisation, as it sent
            them. The other methods name none; whoever calls them can.

    Returns:
        `[B, T, H, V]`, in the query's dtype, in the order of the queries.

    Raises:
        ParallelError: the config forces an implementation that cannot do what `ulysses` asks.
    """
    features: Any = {"window": window, "logit_cap": logit_cap}

    def attend(*arrays: jax.Array) -> jax.Array:
        return implementation(*arrays, settings=settings, **features)(*arrays)

    on_device = {
        ContextAttention.RING: partial(ring_attention, **features),
        ContextAttention.ALL_GATHER: partial(all_gather_attention, **features),
        ContextAttention.ULYSSES: partial(ulysses_attention, attend=attend, names=names),
    }[method]
    queries = partition_spec(("batch", "length", "heads", "head_dim"))
    keys = partition_spec(("batch", "length", "kv_heads", "head_dim"))
    tokens = partition_spec(("batch", "length"))
    arrays: tuple[jax.Array, ...] = (query, key, value, segment_ids)
    specs: tuple[P, ...] = (queries, keys, keys, tokens)
    if sinks is not None:
        arrays, specs = (*arrays, sinks), (*specs, partition_spec(("heads",)))
    mesh = jax.sharding.get_abstract_mesh()
    # That copies are equal over the other axes is true by construction, which the check can't see.
    mapped = jax.shard_map(
        on_device,
        in_specs=specs,
        out_specs=queries,
        axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
        check_vma=False,
    )
    with jax.named_scope("context_attention"):
        return mapped(*arrays)
