"""The train step as it is compiled: for a run, a benchmark, and a plan of either.

In come a resolved config and what it is made of, on a mesh whose devices may only be described; out
comes the jitted step. There is one such function, so that what is planned is what will run.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from maxlm.config.schema import RunConfig
from maxlm.kernels.attention.features import hardware_of
from maxlm.model.definition import ModelDefinition
from maxlm.train.schedule import RateSchedule
from maxlm.train.state import TrainState
from maxlm.train.step import make_train_step


def jitted_step(
    config: RunConfig,
    model: ModelDefinition,
    optimizer: optax.GradientTransformation,
    rate: RateSchedule,
    *,
    layout: TrainState,
    token_bytes: Any,
) -> Any:
    """`(state, batch) -> (state, metrics)`, compiled at its first call; the state is donated.

    Args:
        config: resolved.
        model: the model to train.
        optimizer: of `config.optimizer`.
        rate: fraction of the peak learning rate by step.
        layout: shapes, dtypes and shardings of the state.
        token_bytes: `[vocab_size]` int32, UTF-8 bytes that each token stands for.
    """
    step = make_train_step(
        model,
        optimizer,
        rate,
        clip_norm=config.optimizer.clip_norm,
        z_loss=config.train.z_loss,
        accumulation=config.train.accumulation,
        average_decay=config.optimizer.average_decay,
        token_bytes=token_bytes,
    )
    options = dict(config.parallel.compiler_options)
    device = layout.step.sharding.mesh.devices.flat[0]
    if config.train.deterministic and hardware_of(device).platform == "gpu":
        options["xla_gpu_deterministic_ops"] = True
    # Said and not left to the compiler: it may lay a bias out anew, and compile a second step
    # for the state that comes back.
    places = (jax.tree.map(lambda leaf: leaf.sharding, layout), None)
    return jax.jit(step, donate_argnums=0, out_shardings=places, compiler_options=options)
