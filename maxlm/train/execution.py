"""How the model of a resolved config is computed on a mesh: number types, kernels, stages.

In come a config and a mesh, whose devices may only be described; out comes the `Execution` that the
model's definition takes. What was chosen is told, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config.derive_model import row_lengths
from maxlm.config.schema import ContextAttention, Precision, RunConfig
from maxlm.kernels.attention.features import hardware_of
from maxlm.kernels.context.choose import choose_context_attention
from maxlm.kernels.experts.choose import choose_expert_kernels
from maxlm.kernels.experts.dispatch import ExpertKernels
from maxlm.model.decoder import Execution
from maxlm.parallel.stages import stages_of

Message = Callable[[str], None]


def execution_of(
    config: RunConfig, mesh: Mesh | None = None, message: Message = lambda text: None
) -> Execution:
    """How the model of a resolved config is computed.

    Args:
        config: resolved.
        mesh: what rows and heads have to divide over; None: nothing that a mesh decides is asked.
        message: told what was chosen and why.

    Raises:
        ParallelError: rows do not divide over the mesh, or attention cannot be done as asked for.
    """
    wide = config.train.precision is Precision.FLOAT64
    assert config.train.precision
    # The mesh's devices, not this machine's: they may only be described.
    hardware = hardware_of(mesh.devices.flat[0]) if mesh is not None else None
    method = ContextAttention.ALL_GATHER  # right on every mesh
    if mesh is not None and hardware is not None and mesh.shape["context"] > 1:
        method, reason = choose_context_attention(
            config.parallel.context_attention,
            config.model,
            mesh,
            row_lengths(config),
            hardware=hardware,
            dtype=config.train.precision.value,
        )
        message(f"attention over context {mesh.shape['context']}: {method} ({reason})")
    return Execution(
        compute_dtype=jnp.dtype(config.train.precision.value),
        param_dtype=jnp.float64 if wide else jnp.float32,
        rematerialization=config.parallel.rematerialization,
        scan_unroll=config.parallel.scan_unroll or 1,
        loss_chunk=config.train.loss_chunk,
        context_attention=method,
        attention=config.parallel.attention,
        hardware=hardware,
        experts=_expert_kernels(config, mesh, message),
        stages=stages_of(config.parallel, mesh) if mesh is not None else None,
    )


def _expert_kernels(config: RunConfig, mesh: Mesh | None, message: Message) -> ExpertKernels:
    assert config.train.precision
    kernels, line = choose_expert_kernels(
        config.parallel.expert_matmul,
        config.parallel.expert_exchange,
        platform=hardware_of(mesh.devices.flat[0] if mesh is not None else None).platform,
        dtype=config.train.precision.value,
    )
    if config.model.num_experts:
        message(line)
    return kernels
