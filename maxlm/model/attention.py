"""Self-attention of a block: projections, RoPE, QK-norm, and the kernel or the key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.choices import ContextAttention
from maxlm.config.expert_layers import Layer
from maxlm.config.head_widths import value_dim
from maxlm.config.schema import AttentionSpan, BiasKind, ModelConfig, QKNormWidth
from maxlm.kernels.attention.attend import AttentionSettings, attention
from maxlm.kernels.context.attention import context_attention
from maxlm.kernels.rotation import rotate
from maxlm.model.cache import Cache, Pass, attend_cached, write
from maxlm.model.norm import Norm
from maxlm.model.parameter import Initializer, Kind, declare, zeros
from maxlm.model.projection import Projection
from maxlm.model.rope import Angles
from maxlm.parallel.axes import constrain, length_shards

CachedLayer = tuple[Cache, jax.Array]  # of a stack of layers, and the layer's index in it


class Context(NamedTuple):
    """What every block of a forward pass shares."""

    segment_ids: jax.Array  # [B, T]
    rope: Angles | None
    now: Pass | None = None  # where the tokens belong in the caches; None without any
    method: ContextAttention = ContextAttention.ALL_GATHER  # where T lies over several devices
    settings: AttentionSettings = AttentionSettings()  # who computes attention
    # [B, T], by which tokens of a row find places at experts with a capacity; None: all do
    turns: jax.Array | None = None
    local_rope: Angles | None = None  # of local layers, where it is not `rope`


class Attention(nnx.Module):
    """Multi-head or grouped-query self-attention."""

    def __init__(
        self,
        config: ModelConfig,
        layer: Layer,
        rngs: nnx.Rngs,
        *,
        init: Initializer,
        output_init: Initializer,
        dtype: jnp.dtype,
    ):
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        assert kv_heads and width
        is_local = layer.span is AttentionSpan.LOCAL
        self.window = config.attention_window if is_local else None
        self.has_rope = layer.has_rope
        self.logit_cap = config.attention_logit_cap
        # What a cache holds of a token, [K, C] and [K, V].
        self.key_shape, self.value_shape = (kv_heads, width), (kv_heads, value_dim(config))
        self._declare(config, rngs, init, dtype)
        self.output = Projection(
            rngs,
            (heads, value_dim(config), config.embed_dim),
            axes=("heads", "head_dim", "embed"),
            inputs=2,
            init=output_init,
            bias=config.attention_bias is BiasKind.ALL,
            dtype=dtype,
        )
        scale = config.attention_scale
        # The kernels divide by √head_dim.
        self.query_factor = None if scale is None else scale * width**0.5
        self.sinks = (
            declare(rngs, (heads,), axes=("heads",), kind=Kind.VECTOR, init=zeros, dtype=dtype)
            if config.attention_sinks
            else None
        )

    def _declare(
        self, config: ModelConfig, rngs: nnx.Rngs, init: Initializer, dtype: jnp.dtype
    ) -> None:
        """Make what queries, keys and values come from."""
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        assert kv_heads and width
        qkv_bias = config.attention_bias in (BiasKind.QKV, BiasKind.ALL)

        def project(count: int, axis: str, width: int) -> Projection:
            return Projection(
                rngs,
                (config.embed_dim, count, width),
                axes=("embed", axis, "head_dim"),
                inputs=1,
                init=init,
                bias=qkv_bias,
                dtype=dtype,
            )

        self.query = project(heads, "heads", width)
        self.key = project(kv_heads, "kv_heads", width)
        self.value = project(kv_heads, "kv_heads", value_dim(config))
        self.joint_norm = config.qk_norm_width is QKNormWidth.PROJECTION

        def head_norm(count: int) -> Norm | None:
            size = count * width if self.joint_norm else width
            return Norm(config, size, rngs, dtype) if config.qk_norm else None

        self.query_norm, self.key_norm = head_norm(heads), head_norm(kv_heads)

    def __call__(
        self, x: jax.Array, context: Context, stacked: CachedLayer | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Attend over `x [B, T, D]` and, with a cache, over what came before.

        Args:
            x: the residual stream, normed.
            context: of the pass.
            stacked: the cache of a stack of layers and which of them this is.

        Returns:
            The sublayer's output `[B, T, D]` and the cache with the current tokens written.
        """
        query, key, value = self._projected(x, context)
        features: dict[str, Any] = {"window": self.window, "logit_cap": self.logit_cap}
        features["sinks"] = None if self.sinks is None else self.sinks[...]
        segments = context.segment_ids
        cache, now = None, context.now
        if stacked is not None and now is not None:
            cache = write(*stacked, key, value, now)
        if stacked is not None and cache is not None and now is not None and not now.fresh:
            out = attend_cached(query, cache, stacked[1], now, **features)
        elif now is None and length_shards(x.shape[1]) > 1:
            features |= {"settings": context.settings, "method": context.method}
            # A norm's gradient needs its input, so that is named and not what ulysses sends.
            features["names"] = ("value",) if self.query_norm else ("query", "key", "value")
            out = context_attention(query, key, value, segment_ids=segments, **features)
        else:
            features["settings"] = context.settings
            out = attention(query, key, value, segment_ids=segments, **features)
        return self.output(constrain(out, "batch", "length", "heads", "head_dim")), cache

    def _projected(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, H, C]`, keys `[B, T, K, C]` and values `[B, T, K, V]` as kernels take them."""
        query = constrain(self.query(x), "batch", "length", "heads", "head_dim")
        key = constrain(self.key(x), "batch", "length", "kv_heads", "head_dim")
        value = constrain(self.value(x), "batch", "length", "kv_heads", "head_dim")
        # Named for the policies of rematerialization.py: as the kernel reads them, or where a norm
        # follows, whose gradient needs its input, before it.
        name = naming(x, context)
        value = name(value, "value")
        if self.query_norm is not None and self.key_norm is not None:
            query, key = checkpoint_name(query, "query"), checkpoint_name(key, "key")
            query, key = self._normed(self.query_norm, query), self._normed(self.key_norm, key)
        rope = self._rope(context)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        if self.query_factor is not None:
            query = query * jnp.asarray(self.query_factor, query.dtype)
        if self.query_norm is None:
            query, key = name(query, "query"), name(key, "key")
        return query, key, value

    def _rope(self, context: Context) -> Angles | None:
        """The rotations of this layer; None where it has no positions."""
        if not self.has_rope:
            return None
        is_own = self.window is not None and context.local_rope is not None
        return context.local_rope if is_own else context.rope

    def _normed(self, norm: Norm, x: jax.Array) -> jax.Array:
        """Norm of heads `x [B, T, H, C]`, each by itself or all together."""
        if not self.joint_norm:
            return norm(x)
        batch, length, heads, width = x.shape
        return norm(x.reshape(batch, length, heads * width)).reshape(x.shape)


def naming(x: jax.Array, context: Context) -> Callable[[jax.Array, str], jax.Array]:
    """How queries, keys and values of `x [B, T, D]` get their names: ulysses names what it sent itself."""
    is_sent = context.now is None and length_shards(x.shape[1]) > 1
    if is_sent and context.method is ContextAttention.ULYSSES:
        return lambda array, name: array
    return checkpoint_name
