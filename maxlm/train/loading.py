"""A trained model, read back from a run's checkpoint: `load("runs/books@8000")`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maxlm.config.load import load_config
from maxlm.config.schema import ParallelConfig, RunConfig
from maxlm.data.tokenizers import Tokenizer, load_tokenizer
from maxlm.errors import CheckpointError, ParallelError
from maxlm.model.definition import ModelDefinition, Params, define
from maxlm.parallel.compiler_options import check_compiler_options, refused_options
from maxlm.parallel.mesh import make_mesh
from maxlm.train.execution import execution_of
from maxlm.train.run_folder import require_run
from maxlm.train.setup import as_started, restore_params, set_up_jax

# Options of `parallel` that force a kernel, which other hardware may not have.
KERNELS = ("attention", "expert_matmul", "expert_exchange")


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, tokenizer and the config that it was trained with, but for `OF_HARDWARE`."""

    config: RunConfig
    step: int
    model: ModelDefinition
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh

    @property
    def token_bytes(self) -> jax.Array:
        """`[vocab_size]` bytes that each token stands for."""
        return jnp.asarray(self.tokenizer.token_bytes())


def load(reference: str, overrides: list[str] | None = None) -> TrainedModel:
    """Load `RUN` or `RUN@STEP`: the averaged weights where the run keeps them.

    Args:
        reference: a run folder, local or gs://, and a step.
        overrides: `key=value` on the run's config, such as `eval.sets.…` or `parallel.…`.

    Raises:
        CheckpointError: there is no such run or checkpoint.
        ParallelError: the overrides ask for a mesh that does not fit.
    """
    folder, step = require_run(reference)
    overrides = overrides or []
    config = as_started(load_config(folder.config, overrides))
    set_up_jax(config)
    asked = any(o.startswith("parallel.") for o in overrides)
    config = _for_this_machine(config, overrides)
    mesh = mesh_for(config, asked=asked)
    model = define(config.model, execution_of(config, mesh))
    average = config.optimizer.average_decay is not None
    kind = "average" if average else "params"
    with jax.set_mesh(mesh):
        params, step = restore_params(folder, step, model, mesh, kind)
    return TrainedModel(config, step, model, params, load_tokenizer(folder.tokenizer), mesh)


def _for_this_machine(config: RunConfig, overrides: list[str]) -> RunConfig:
    """The config without what the run was told for its own hardware, which this may not have.

    What overrides ask for stays.
    """

    def asked(name: str) -> bool:
        return any(o.startswith(f"parallel.{name}") for o in overrides)

    fields = ParallelConfig.model_fields
    changes: dict[str, Any] = {n: fields[n].default for n in KERNELS if not asked(n)}
    options = config.parallel.compiler_options
    if asked("compiler_options"):
        check_compiler_options(options)
    else:
        refused = refused_options(options)
        changes["compiler_options"] = {n: v for n, v in options.items() if n not in refused}
    return config.model_copy(update={"parallel": config.parallel.model_copy(update=changes)})


def mesh_for(config: RunConfig, *, asked: bool) -> Mesh:
    """The mesh that was asked for; else the run's own where it fits the devices, or what fits."""
    if asked:
        mesh = make_mesh(config.parallel)
        define(config.model, execution_of(config, mesh)).shardings(mesh)
        return mesh
    candidates = [
        config.parallel,
        ParallelConfig(fsdp=-1),
        ParallelConfig(replica=-1, fsdp=1),
    ]
    for parallel in candidates:
        try:
            mesh = make_mesh(parallel)
            define(config.model, execution_of(config, mesh)).shardings(mesh)
        except ParallelError:
            continue
        return mesh
    raise CheckpointError(f"no mesh over {jax.device_count()} devices fits this model")
