"""TPU splash attention: a Pallas kernel that skips the blocks that causality and windows mask.

In: one device's queries, keys, values and segment ids; out: the attended values, as
`reference_attention` defines them. The kernel is `jax.experimental.pallas.ops.tpu.splash_attention`;
here it gets its mask, its block sizes and scaled queries. XLA cannot divide it over devices, so
`attend.attention` runs it inside `jax.shard_map`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax

from maxlm.kernels.attention.features import Features

FEATURES = Features(
    platforms=("tpu",),
    dtypes=("bfloat16", "float32"),
    length_multiple=128,  # the lanes of a vector register
    head_dim_multiple=64,
    max_head_dim=256,
)

BLOCKS = (1024, 512, 256, 128)
# Keys of a block whose scores the forward kernel computes at once.
AT_ONCE = 512


@dataclass(frozen=True)
class Blocks:
    """How the kernels cut a row.

    Attributes:
        size: queries of a block, and keys.
        at_once: keys whose scores the forward kernel computes at once; the size is a multiple of it.
    """

    size: int
    at_once: int


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    sinks: jax.Array | None = None,
    *,
    window: int | None = None,
    logit_cap: float | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Self-attention of whole rows; arguments and result as in `attention`, on one device.

    Kept for the backward pass and named `attention_out`, both: the output (as `[B, H, T, C]`) and
    the log-sum-exp. The kernel takes one name for the two.

    Args:
        query: `[B, T, H, C]`; T a multiple of 128, C of 64.
        key: `[B, T, K, C]`.
        value: `[B, T, K, V]`; V a multiple of 64.
        segment_ids: `[B, T]` int32.
        sinks: `[H]`, as in `attention`.
        window: as in `attention`.
        logit_cap: as in `attention`.
        blocks: of the row; None: those of `choose_blocks`.
        interpret: run on a CPU, slowly (for tests).
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    length, heads, head_dim = query.shape[1:]
    blocks = blocks or choose_blocks(length, window, head_dim * query.dtype.itemsize)
    kernel = _kernel(length, heads, blocks, window, logit_cap, interpret)

    def row(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
        return kernel(query, key, value, segment_ids=SegmentIds(ids, ids), sinks=sinks)

    query = query * head_dim**-0.5  # the kernel does not scale
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [B, H or K, T, C]
    return jax.vmap(row)(query, key, value, segment_ids).swapaxes(1, 2)


def choose_blocks(length: int, window: int | None, head_bytes: int) -> Blocks:
    """Blocks of 1024 queries and keys where the length, the window and the chip's memory allow.

    By the compiler's schedules (docs/kernels.md has the table) blocks of 1024 take three quarters of the
    time of 512 for the same scores, and the forward kernel less with 512 of its keys at once; the
    backward kernels do not. A query block of a window of 512 goes over 2 blocks either way, so there 512
    computes half the scores; at 1024 it is 3 against 2, which is even.

    Args:
        length: tokens of a row, a multiple of 128.
        window: as in `attention`.
        head_bytes: of one head of a token; blocks of 1024 float32 heads of 256 are
            too large for v5p.
    """
    narrow = window is not None and window <= 512
    largest = 512 if narrow or head_bytes > 512 else 1024
    size = next(b for b in BLOCKS if b <= largest and length % b == 0)
    return Blocks(size, min(size, AT_ONCE))


@lru_cache(maxsize=64)
def _kernel(
    length: int,
    heads: int,
    blocks: Blocks,
    window: int | None,
    logit_cap: float | None,
    interpret: bool,
) -> Any:
    """The kernel of a shape, with the description of its mask."""
    # Imported here: Pallas takes half a second, which nothing but a TPU needs.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info

    if window is None or window >= length:
        mask: Any = masks.CausalMask((length, length))
    else:
        mask = masks.LocalMask((length, length), (window - 1, 0), 0)
    mask = masks.MultiHeadMask([mask] * heads)
    size, shape = blocks.size, (blocks.size, blocks.size)
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=blocks.at_once,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    # `make_splash_mha` does the same and puts the mask's tables on a device: there is none where a
    # program is compiled for a described machine, and inside a trace they could not be kept.
    shards = {"head_shards": 1, "q_seq_shards": 1}
    table, function = info.process_mask(mask, shape, **shards)
    table_dkv, _ = info.process_mask_dkv(mask, shape, **shards)
    return splash.SplashAttentionKernel(
        table,
        table,
        table_dkv,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=logit_cap,
        residual_checkpoint_name="attention_out",
        mask_function=function,
        interpret=interpret,
    )
