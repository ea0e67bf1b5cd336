"""cuDNN flash attention on NVIDIA GPUs of the Hopper generation and later, exact on packed rows.

In: one device's queries, keys, values and segment ids; out: the attended values, as
`reference_attention` defines them.

`jax.nn.dot_product_attention(implementation="cudnn")` takes no segment ids, so it would let the
documents of a packed row see each other. cuDNN itself has a packed layout, though: sequences of
different lengths in one buffer, told by where each begins and how long it is, each attending to
itself alone and skipping everything else. jax binds that as a primitive without a public name
(jax/_src/cudnn/fused_attention_stablehlo.py), which is what is called here. The offsets are computed
here and not by jax, whose own are wrong for grouped queries before jax-ml/jax#39521 (a token of the
keys has `K × C` elements and not `H × C`; nothing fails, the numbers are wrong).

The program fixes how many documents a row may have (`max_segments`), because cuDNN's statistics take
memory for each. A batch with a row of more, or with a document in several pieces, is computed by
`chunked` on the device, in the same program: slower, equally exact.

Never run on a GPU by us yet: the tests check the operands against a simulation and the lowering.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.errors import ParallelError
from maxlm.kernels.attention.features import Features
from maxlm.kernels.attention.parts import backward_part, forward_part, whole_rows
from maxlm.kernels.one_mapped import one_mapped

FEATURES = Features(
    platforms=("gpu",),
    dtypes=("bfloat16",),
    logit_cap=False,
    value_dim=False,
    sinks=False,
    head_dim_multiple=8,
    max_head_dim=128,
    compute_capability=9.0,  # the packed layout's
)


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Self-attention of whole rows; arguments and result as in `attention`, on one device.

    Kept for the backward pass and named for rematerialisation: the output (`attention_out`) and
    cuDNN's statistics (`attention_lse`, `[B × max_segments, H, T]`).

    Raises:
        ParallelError: the batch of a device is too large for cuDNN's 32-bit offsets, or this jax
            has no packed layout.
    """
    assert logit_cap is None
    if query.size >= 2**31:
        raise ParallelError(
            f"attention of {query.shape[0]} rows × length {query.shape[1]} × {query.shape[2]} heads "
            f"× head_dim {query.shape[3]} on one GPU has {query.size} elements, which cuDNN's 32-bit "
            "offsets cannot address; use more micro-batches (train.accumulation) or devices"
        )
    return _attention(window, query, key, value, segment_ids)


def max_segments(length: int) -> int:
    """Documents that a row may have before `chunked` takes over: 128 tokens each, 16 to 64.

    The statistics take 4 bytes per token, head and document; 64 take as much as one bfloat16
    activation of head_dim 128.
    """
    return max(16, min(64, length // 128))


class Packed(NamedTuple):
    """Where the documents of a batch lie in memory, as cuDNN's packed layout tells it.

    With M the most documents a row may have; what is not used stands at the end of the whole batch,
    in length 0 and in offset the end of the buffer.
    """

    lengths: jax.Array  # [B, M] int32: tokens of each document, all rows' one after the other
    query_offsets: jax.Array  # [B, M + 1] int32: first element of each document's queries
    key_offsets: jax.Array  # [B, M + 1] int32: and of its keys and values
    fits: jax.Array  # bool: no row has more than M, and none has a document in pieces


def pack(segment_ids: jax.Array, query_stride: int, key_stride: int, limit: int) -> Packed:
    """The packed layout of rows of documents.

    Args:
        segment_ids: `[B, T]` int32; padding (0) is laid out as a document of its own.
        query_stride: elements of a token's queries, H × C.
        key_stride: elements of a token's keys, K × C.
        limit: documents that a row may have, M.
    """
    batch, length = segment_ids.shape
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    run = jnp.pad(jnp.cumsum(begins, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))  # [B, T]
    count = run[:, -1:] + 1  # [B, 1]
    number = jnp.arange(limit + 1, dtype=jnp.int32)
    starts = (run[:, :, None] < number).sum(1, dtype=jnp.int32)  # [B, M + 1]; length where unused
    used = number < count
    in_batch = starts + length * jnp.arange(batch, dtype=jnp.int32)[:, None]
    lengths = jnp.diff(starts, axis=1)
    offsets = _first(in_batch, used, batch * length)
    # Rising ids, padding last: then equal ids are adjacent.
    rank = jnp.where(segment_ids == 0, jnp.iinfo(jnp.int32).max, segment_ids)
    fits = (count <= limit).all() & (rank[:, 1:] >= rank[:, :-1]).all()
    return Packed(
        lengths=_first(lengths, used[:, :-1], 0),
        query_offsets=offsets * query_stride,
        key_offsets=offsets * key_stride,
        fits=fits,
    )


def _first(x: jax.Array, used: jax.Array, fill: int) -> jax.Array:
    """The used elements of `x` in order, then the fill; of the same shape."""
    order = jnp.argsort(~used.ravel(), stable=True)
    return jnp.where(used, x, fill).ravel()[order].reshape(x.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    return _forward(window, query, key, value, segment_ids)[0]


def _forward(
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, stats = one_mapped(partial(_forward_of_any, window))(query, key, value, segment_ids)
    out = checkpoint_name(out, "attention_out")
    stats = checkpoint_name(stats, "attention_lse")
    return out, (query, key, value, segment_ids, out, stats)


def _forward_of_any(
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Output and statistics, by cuDNN where the documents fit its packed layout."""
    packed = _pack(query, key, segment_ids)
    stats_shape = (packed.lengths.size, query.shape[2], query.shape[1])

    def chunked() -> tuple[jax.Array, jax.Array]:
        out, lse = forward_part(query, key, value, whole_rows(segment_ids), window=window)
        stats = jnp.zeros(stats_shape, jnp.float32).at[: len(lse)].set(lse)
        return out.astype(query.dtype), stats

    call = partial(packed_forward, query, key, value, packed, window=window)
    return jax.lax.cond(packed.fits, call, chunked)


def _backward(
    window: int | None, residuals: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
    return (*one_mapped(partial(_backward_of_any, window))(*residuals, d_out), None)


_attention.defvjp(_forward, _backward)


def _backward_of_any(
    window: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    out: jax.Array,
    stats: jax.Array,
    d_out: jax.Array,
) -> tuple[jax.Array, ...]:
    packed = _pack(query, key, segment_ids)

    def chunked() -> tuple[jax.Array, ...]:
        lse = stats[: len(query)]
        places = whole_rows(segment_ids)
        grads = backward_part(query, key, value, out, lse, d_out, places, window=window)
        return tuple(g.astype(query.dtype) for g in grads)

    call = partial(packed_backward, query, key, value, out, stats, d_out, packed, window=window)
    return jax.lax.cond(packed.fits, call, chunked)


def _pack(query: jax.Array, key: jax.Array, segment_ids: jax.Array) -> Packed:
    _, length, heads, width = query.shape
    return pack(segment_ids, heads * width, key.shape[2] * width, max_segments(length))


def packed_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, packed: Packed, *, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """cuDNN's forward pass: the output `[B, T, H, C]` and statistics `[B × M, H, T]` float32."""
    fused = _fused()
    out, stats = fused._dot_product_attention_fwd_p.bind(
        *_operands(query, key, value, packed), **_settings(query, window), is_training=True
    )
    return out, stats


def packed_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    stats: jax.Array,
    d_out: jax.Array,
    packed: Packed,
    *,
    window: int | None,
) -> tuple[jax.Array, ...]:
    """cuDNN's backward pass: gradients of query, key and value."""
    fused = _fused()
    operands = (*_operands(query, key, value, packed), stats, out, d_out)
    return tuple(fused._dot_product_attention_bwd_p.bind(*operands, **_settings(query, window)))


def _operands(
    query: jax.Array, key: jax.Array, value: jax.Array, packed: Packed
) -> tuple[jax.Array, ...]:
    unused = jnp.zeros(0, query.dtype)  # a bias; and pages of keys, below
    lengths, query_offsets, key_offsets, _ = packed
    layout = (lengths, lengths, query_offsets, key_offsets)
    return (query, key, value, unused, *layout, unused, unused)


def _settings(query: jax.Array, window: int | None) -> dict[str, Any]:
    fused = _fused()
    settings = {
        "scale": query.shape[-1] ** -0.5,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # neither a bias nor its gradient
        "mask_type": fused.MaskType.PADDING_CAUSAL,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": window,
    }
    # jax 0.12 can modify scores too.
    known = inspect.signature(fused._dot_product_attention_fwd_cuda_lowering).parameters
    more = ("score_mod_name", "score_mod_jaxpr")
    return settings | {name: None for name in more if name in known}


def _fused() -> Any:
    """jax's module of cuDNN attention. Raises ParallelError where it is another than we know."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    needed = (
        "_dot_product_attention_fwd_p",
        "_dot_product_attention_bwd_p",
        "_dot_product_attention_fwd_cuda_lowering",
        "MaskType",
        "AttentionLayout",
    )
    missing = [name for name in needed if not hasattr(fused, name)]
    if missing:
        raise ParallelError(
            f"jax {jax.__version__} binds cuDNN attention in another way (no {', '.join(missing)}); "
            "set parallel.attention to chunked, or use jax 0.10 to 0.12"
        )
    return fused
