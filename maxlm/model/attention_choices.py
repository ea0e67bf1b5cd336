"""Who will compute a model's attention: known, and refused where impossible, before compiling."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config.choices import AttentionKernel
from maxlm.config.schema import AttentionSpan, ModelConfig
from maxlm.errors import ParallelError
from maxlm.kernels.attention.choose import choose
from maxlm.kernels.attention.features import AttentionCall, hardware_of
from maxlm.model.decoder import Execution


def attention_choices(
    config: ModelConfig, execution: Execution, length: int, mesh: Mesh
) -> dict[str, str]:
    """The implementation and its reason in words, by span of the layers (`global`, `local`).

    Args:
        config: a resolved model.
        execution: how it is computed.
        length: tokens of a row.
        mesh: where; rows over several devices (`context`) have methods of their own, and no choice.

    Raises:
        ParallelError: the config forces an implementation that cannot do this.
    """
    if mesh.shape["context"] > 1:
        if execution.attention is not AttentionKernel.AUTO:
            raise ParallelError(
                f"parallel.attention is {execution.attention.value}, but rows lie over context "
                f"{mesh.shape['context']} devices, where parallel.context_attention decides; set "
                "parallel.attention to auto"
            )
        return {}
    assert config.num_kv_heads and config.head_dim
    hardware = execution.hardware or hardware_of(mesh.devices.flat[0])
    choices = {}
    for span in dict.fromkeys(config.attention_pattern):
        call = AttentionCall(
            length=length,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=jnp.dtype(execution.compute_dtype).name,
            window=config.attention_window if span is AttentionSpan.LOCAL else None,
            logit_cap=config.attention_logit_cap,
        )
        choices[span.value] = str(choose(call, hardware, execution.attention))
    return choices
