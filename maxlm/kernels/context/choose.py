"""Which method attends over rows that lie on several devices, and why.

In: what the config asks for, the model's heads, the mesh, the hardware and the lengths that will come; out: a
method and its reason, or a refusal with the arithmetic. `docs/context.md` states the rule.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from jax.sharding import Mesh

from maxlm.config.choices import AttentionKernel, ContextAttention
from maxlm.config.mesh_axes import product_of
from maxlm.config.schema import ModelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.calls import attention_call
from maxlm.kernels.attention.choose import choose
from maxlm.kernels.attention.features import Hardware
from maxlm.kernels.context.ulysses import heads_of_device
from maxlm.parallel.axes import LENGTH_AXES, TABLE, shard_count
from maxlm.parallel.mesh import check_length

# A step of the ring computes 2 × tokens² × heads × head_dim FLOPs and sends 4 × tokens × kv_heads ×
# head_dim bytes (bfloat16 keys and values): tokens × heads / (2 × kv_heads) FLOPs a byte. A chip
# computes 4,000 to 5,000 in the time that one of its links takes for a byte (v5e 197 TFLOP/s and
# 50 GB/s, v5p 459 and 100).
HIDDEN_FROM = 8192


class Choice(NamedTuple):
    """A method and, in words, why it was taken."""

    method: ContextAttention
    reason: str


def choose_context_attention(
    asked: ContextAttention,
    model: ModelConfig,
    mesh: Mesh,
    lengths: Collection[int],
    *,
    hardware: Hardware,
    dtype: str,
) -> Choice:
    """The method of a run.

    Args:
        asked: `parallel.context_attention`.
        model: resolved.
        mesh: of the run, with rows over several devices.
        lengths: tokens of a row, of every phase and evaluation set.
        hardware: what the program is compiled for.
        dtype: of queries, keys and values.

    Raises:
        ParallelError: a length does not divide, or the method that was asked for cannot be had.
    """
    for length in sorted(lengths):
        check_length(length, mesh, chunks=2 if asked is ContextAttention.RING else 1)
    if asked is ContextAttention.ULYSSES and not _heads_divide(model, mesh):
        raise _heads_error(model, mesh)
    if asked is not ContextAttention.AUTO:
        return Choice(asked, "asked for")
    kernel = _kernel(model, mesh, lengths, hardware, dtype) if _heads_divide(model, mesh) else None
    if kernel is not None:
        reason = f"{kernel.value} attends to whole rows, a ring in plain XLA"
        shards = shard_count(mesh, LENGTH_AXES)
        return Choice(
            ContextAttention.ULYSSES, f"{reason}; {_heads(model, mesh)} divide by {shards}"
        )
    return _without_kernel(model, mesh, lengths)


def _kernel(
    model: ModelConfig, mesh: Mesh, lengths: Collection[int], hardware: Hardware, dtype: str
) -> AttentionKernel | None:
    """That which attends to whole rows of every layer; None: plain XLA to some of them."""
    heads = heads_of_device(model, mesh)
    kernels = {
        choose(
            attention_call(model, span, length=length, heads=heads, dtype=dtype), hardware
        ).kernel
        for span in model.attention_pattern
        for length in lengths
    }
    in_xla = kernels & {AttentionKernel.CHUNKED, AttentionKernel.REFERENCE}
    return None if in_xla else kernels.pop()


def _without_kernel(model: ModelConfig, mesh: Mesh, lengths: Collection[int]) -> Choice:
    assert model.num_kv_heads
    shards = shard_count(mesh, LENGTH_AXES)
    uneven = [length for length in sorted(lengths) if length % (2 * shards)]
    heads_divide = _heads_divide(model, mesh)
    hidden = max(lengths) // shards * model.num_heads // model.num_kv_heads
    product = (
        f"{max(lengths) // shards} tokens a device × {model.num_heads} / {model.num_kv_heads} heads"
        f" = {hidden}"
    )
    if not uneven and hidden >= HIDDEN_FROM:
        reason = f"work hides its transfers: {product}, at least {HIDDEN_FROM}"
        return Choice(ContextAttention.RING, reason)
    if heads_divide:
        why = (
            f"length {uneven[0]} does not divide into 2 × {shards} chunks for a ring"
            if uneven
            else f"work would not hide a ring's transfers: {product}, under {HIDDEN_FROM}"
        )
        return Choice(ContextAttention.ULYSSES, f"{why}; {_heads(model, mesh)} divide by {shards}")
    without = f"{_heads(model, mesh)} do not divide by {shards} for ulysses"
    if not uneven:
        return Choice(ContextAttention.RING, without)
    reason = f"{without}, nor length {uneven[0]} into 2 × {shards} chunks for a ring"
    return Choice(ContextAttention.ALL_GATHER, reason)


def _heads_divide(model: ModelConfig, mesh: Mesh) -> bool:
    return model.num_heads % shard_count(mesh, TABLE["heads"] + LENGTH_AXES) == 0


def _heads(model: ModelConfig, mesh: Mesh) -> str:
    """In words: `8 heads / tensor 2`."""
    tensor = shard_count(mesh, TABLE["heads"])
    over = f" / {product_of(mesh.shape, axes=TABLE['heads'])}" if tensor > 1 else ""
    return f"{model.num_heads} heads{over}"


def _heads_error(model: ModelConfig, mesh: Mesh) -> ParallelError:
    tensor = shard_count(mesh, TABLE["heads"])
    local = model.num_heads // tensor
    fitting = [n for n in range(1, local + 1) if local % n == 0]
    shards = shard_count(mesh, LENGTH_AXES)
    nearest = sorted(fitting, key=lambda n: abs(n - shards))[:2]
    return ParallelError(
        f"parallel.context_attention is ulysses, but {_heads(model, mesh)} = {local} a device do "
        f"not divide by {product_of(mesh.shape, axes=LENGTH_AXES)}: nearest sizes of the axis are "
        f"{' and '.join(map(str, sorted(nearest)))}; ring and all_gather need no such number"
    )
