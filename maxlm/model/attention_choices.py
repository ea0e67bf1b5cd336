"""Who will compute a model's attention: known, and refused where impossible, before compiling."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config.choices import AttentionKernel, ContextAttention
from maxlm.config.schema import ModelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.calls import attention_call
from maxlm.kernels.attention.choose import choose
from maxlm.kernels.attention.features import hardware_of
from maxlm.kernels.context.ulysses import heads_of_device
from maxlm.model.decoder import Execution
from maxlm.parallel.axes import LENGTH_AXES, shard_count


def attention_choices(
    config: ModelConfig, execution: Execution, length: int, mesh: Mesh
) -> dict[str, str]:
    """The implementation and its reason in words, by span of the layers (`global`, `local`).

    Args:
        config: a resolved model.
        execution: how it is computed.
        length: tokens of a row.
        mesh: where. Of the methods for rows over several devices (`context`), `ulysses` has a choice,
            for the heads that it gives to a device; the others compute in one way, and none is told.

    Raises:
        ParallelError: the config forces an implementation that cannot do this.
    """
    assert config.num_kv_heads
    heads = config.num_heads, config.num_kv_heads
    shards = shard_count(mesh, LENGTH_AXES)
    if shards > 1:
        if execution.context_attention is not ContextAttention.ULYSSES:
            _refuse_forced(execution, shards)
            return {}
        heads = heads_of_device(config, mesh)
    hardware = execution.hardware or hardware_of(mesh.devices.flat[0])
    dtype, choices = jnp.dtype(execution.compute_dtype).name, {}
    for span in dict.fromkeys(config.attention_pattern):
        call = attention_call(config, span, length=length, heads=heads, dtype=dtype)
        choices[span.value] = str(choose(call, hardware, execution.attention))
    return choices


def _refuse_forced(execution: Execution, shards: int) -> None:
    """Raise ParallelError where an implementation is forced on a method that has its own."""
    if execution.attention is not AttentionKernel.AUTO:
        raise ParallelError(
            f"parallel.attention is {execution.attention.value}, but rows lie over context {shards} "
            f"devices, where parallel.context_attention is {execution.context_attention.value}, "
            "which computes attention in its own way; set parallel.attention to auto, or "
            "parallel.context_attention to ulysses, which calls any implementation"
        )
