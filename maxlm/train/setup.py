"""From a config to everything that the loop needs: data, mesh, model, optimizer, checkpoints.

`prepare` resolves the config (the stores tell the vocabulary, the model its parameter count, the
rules the rest), refuses a run folder that belongs to another config, and returns a `Run`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import yaml
from jax.sharding import Mesh

from maxlm import __version__, storage
from maxlm.config.derive import Resolved, resolve
from maxlm.config.derive_model import Derived, row_lengths
from maxlm.config.dump import to_yaml
from maxlm.config.meaning import keep_derived, meaning_diff
from maxlm.config.schema import Precision, RunConfig
from maxlm.data.loader import Loader, Source
from maxlm.data.open_sources import open_sources
from maxlm.data.phases import Timeline
from maxlm.data.store import TokenStore
from maxlm.data.tokenizers import Tokenizer
from maxlm.errors import CheckpointError, ConfigError
from maxlm.kernels.attention.features import hardware_of
from maxlm.model.attention_choices import attention_choices
from maxlm.model.count import widest_mlp
from maxlm.model.definition import ModelDefinition, Params, define
from maxlm.model.facts import facts_of
from maxlm.model.rematerialization import check_offload
from maxlm.parallel.accelerators import use_cpu_where_alone
from maxlm.parallel.agreement import process_index
from maxlm.parallel.compiler_options import check_compiler_options
from maxlm.parallel.links import link_warnings
from maxlm.parallel.mesh import batch_multiple, check_batch, make_mesh
from maxlm.parallel.stages import check_microbatches
from maxlm.train.branch import branch_point, branched
from maxlm.train.canonical import canonical_targets, from_canonical
from maxlm.train.checkpoint_checks import from_first_process
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.execution import execution_of
from maxlm.train.jitted_step import jitted_step
from maxlm.train.left_out import ended_whole
from maxlm.train.optimizer import make_optimizer
from maxlm.train.parent import check_parent, check_tokenizer
from maxlm.train.run_folder import RunFolder, require_run
from maxlm.train.same_run import require_same_data, require_same_start, require_shared
from maxlm.train.schedule import RateSchedule
from maxlm.train.state import TrainState, abstract_state, fresh_state

Message = Callable[[str], None]


@dataclass(frozen=True)
class Intervals:
    """Steps between things."""

    log: int
    eval: int
    checkpoint: int


@dataclass
class Run:
    """A run, ready to train."""

    folder: RunFolder
    config: RunConfig
    derived: list[Derived]
    mesh: Mesh
    model: ModelDefinition
    optimizer: optax.GradientTransformation
    rate: RateSchedule
    loader: Loader
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    intervals: Intervals

    @property
    def timeline(self) -> Timeline:
        """What every step reads."""
        return self.loader.timeline

    @cached_property
    def layout(self) -> TrainState:
        """Shapes, dtypes and shardings of the train state."""
        average = self.config.optimizer.average_decay is not None
        return abstract_state(self.model, self.optimizer, average=average, mesh=self.mesh)

    @cached_property
    def token_bytes(self) -> jax.Array:
        """`[vocab_size]` bytes that each token stands for, on the device."""
        return jnp.asarray(self.tokenizer.token_bytes())

    @cached_property
    def train_step(self) -> Any:
        """The jitted step; the state is donated."""
        return jitted_step(
            self.config,
            self.model,
            self.optimizer,
            self.rate,
            layout=self.layout,
            token_bytes=self.token_bytes,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the last step is saved and nothing beside it was left out."""
        if self.timeline.total_steps not in self.saved_steps():
            return False
        # As the first process sees it, which may have written the records a moment ago.
        whole = process_index() == 0 and ended_whole(self.folder.path)
        return bool(from_first_process([int(whole)])[0])

    def restore_or_begin(self, message: Message) -> tuple[TrainState, int]:
        """The newest good state of this run and its step, or a fresh state and 0.

        Raises:
            CheckpointError: there are checkpoints, but none is good or they are of other data.
        """
        targets = canonical_targets(self.layout, self.model)
        self.checkpoints.prepare(targets)
        half_written, steps = self.checkpoints.half_written(), self.saved_steps()
        if half_written and not steps:
            message(
                f"{self.folder.checkpoints}: no complete checkpoint, only what a killed save left "
                f"({', '.join(half_written)}); training starts from the beginning"
            )
        if steps:
            arrays, metadata, step = self.checkpoints.restore(None, targets)
            self._check_data(metadata, step)
            message(f"continuing from step {step} of {self.timeline.total_steps}")
            return from_canonical(arrays, self.layout, self.model), step
        parent = branch_point(self.config)
        if parent is not None:
            folder, step = parent
            checkpoints = Checkpoints(RunFolder(folder).checkpoints)
            arrays, metadata, step = checkpoints.restore(step, targets)
            check_parent(self.loader, self.tokenizer.hash, metadata, checkpoints.path(step), step)
            message(f"branching from step {step} of {folder}")
            return from_canonical(arrays, self.layout, self.model), step
        params = None
        if self.config.train.init_from:
            reference = self.config.train.init_from
            params = load_params(reference, self.model, self.mesh, self.tokenizer.hash)
        state = fresh_state(
            self.model,
            self.optimizer,
            seed=self.config.train.seed,
            average=self.config.optimizer.average_decay is not None,
            mesh=self.mesh,
            params=params,
        )
        return state, 0

    def save(self, step: int, arrays: dict[str, jax.Array]) -> None:
        """Begin to save a checkpoint of canonical arrays."""
        metadata = {
            "cursor": self.timeline.at_step(step).cursor,
            "data_hash": self.loader.hash,
            "tokenizer_hash": self.tokenizer.hash,
            "code_version": __version__,
            "config": self.config.model_dump(mode="json"),
        }
        self.checkpoints.save(step, arrays, metadata, files=self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        folder = self.folder.tokenizer
        return {
            f"tokenizer/{name}": storage.read_bytes(storage.join(folder, name))
            for name in storage.list_names(folder)
        }

    def saved_steps(self) -> list[int]:
        """Steps of the complete checkpoints, as the first process sees the folder."""
        return from_first_process(self.checkpoints.steps())

    def _check_data(self, metadata: dict[str, Any], step: int) -> None:
        cursor = self.timeline.at_step(step).cursor
        if metadata["data_hash"] != self.loader.hash:
            raise CheckpointError(
                f"{self.checkpoints.path(step)} was trained on other data: data hash "
                f"{metadata['data_hash'][:12]}…, now {self.loader.hash[:12]}…; a token store was "
                "rewritten; restore it, or start a new run with --branch-from"
            )
        if metadata["cursor"] != cursor:
            raise CheckpointError(
                f"{self.checkpoints.path(step)} had read {metadata['cursor']} examples, but this "
                f"config has read {cursor} by step {step}"
            )


def prepare(
    config: RunConfig,
    *,
    branch_from: str | None = None,
    message: Message = lambda text: None,
) -> Run:
    """Resolve a config and build the run.

    Args:
        config: as loaded.
        branch_from: `RUN` or `RUN@STEP` whose state a new run starts from.
        message: told what a person should know.

    Raises:
        ConfigError: the config does not fit its data, or the folder is of another run.
        DataError, TokenizerError: a store cannot be used.
        ParallelError: the mesh or batch does not fit the devices.
    """
    config = as_started(config)
    require_same_start(config, branch_from)
    folder = RunFolder(storage.join(config.output, config.name))
    saved = _saved_config(folder)
    if branch_from is not None:
        config = branched(config, branch_from, saved)
    if saved is not None:
        config = keep_derived(saved, config)
    point = branch_point(config)
    set_up_jax(config)
    sources = open_sources(config.data)
    tokenizer = TokenStore(next(iter(config.data.mixture.values())).store).tokenizer()
    mesh = make_mesh(config.parallel)
    check_compiler_options(config.parallel.compiler_options)
    resolved = _resolve(config, tokenizer, sources, mesh)
    config = resolved.config
    _check_meaning(folder, saved, config)
    for text in link_warnings(mesh.devices, widest_mlp(config.model)):
        message(f"a slow mesh: {text}")

    assert config.data.batch_size
    loader = Loader(
        sources, config.data, batch_size=config.data.batch_size, total=config.train.duration
    )
    check_offload(config.parallel.rematerialization, mesh)
    model = define(config.model, execution_of(config, mesh, message))
    _check_phases(config, loader.timeline, model, mesh)
    model.shardings(mesh)
    require_same_data(config, loader, tokenizer.hash)
    _take_folder(folder, config, tokenizer, new=saved is None)
    start_step = point[1] if point else 0
    steps = partial(loader.timeline.steps, after=start_step)
    total = loader.timeline.total_steps
    assert config.schedule.warmup and config.logging.every
    assert config.eval.every and config.checkpoint.every
    keep = config.checkpoint.keep_every
    return Run(
        folder=folder,
        config=config,
        derived=resolved.derived,
        mesh=mesh,
        model=model,
        optimizer=make_optimizer(config.optimizer, model.parameters),
        rate=RateSchedule(
            config.schedule,
            warmup_steps=steps(config.schedule.warmup),
            total_steps=total,
            start_step=start_step,
        ),
        loader=loader,
        tokenizer=tokenizer,
        checkpoints=Checkpoints(
            folder.checkpoints,
            keep_last=config.checkpoint.keep_last,
            keep_every_steps=steps(keep) if keep else None,
            message=message,
        ),
        intervals=Intervals(
            log=max(1, steps(config.logging.every)),
            eval=max(1, steps(config.eval.every)),
            checkpoint=max(1, steps(config.checkpoint.every)),
        ),
    )


def _take_folder(folder: RunFolder, config: RunConfig, tokenizer: Tokenizer, *, new: bool) -> None:
    """Everything fits: the folder is this run's from here on. One process writes, all must see it."""
    if new and process_index() == 0:
        tokenizer.save(folder.tokenizer)
        storage.write_text(folder.config, to_yaml(config))
    require_shared(folder.config)


def as_started(config: RunConfig) -> RunConfig:
    """The config with as many CPU devices as a launcher says that each process has."""
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    if not devices.isdecimal():
        return config
    parallel = config.parallel.model_copy(update={"cpu_devices": int(devices)})
    return config.model_copy(update={"parallel": parallel})


def _check_phases(
    config: RunConfig, timeline: Timeline, model: ModelDefinition, mesh: Mesh
) -> None:
    """Raise ParallelError when a batch or length of the run does not fit the mesh or its kernels."""
    accumulation, stages = config.train.accumulation, model.execution.stages
    for phase in timeline.phases:
        check_batch(phase.batch_size, mesh, accumulation=accumulation)
        if stages is not None:
            check_microbatches(stages, phase.batch_size, mesh, accumulation=accumulation)
    for length in row_lengths(config):
        attention_choices(config.model, model.execution, length, mesh)


def set_up_jax(config: RunConfig) -> None:
    """Set what has to be set before jax starts its devices."""
    use_cpu_where_alone()
    if config.parallel.cpu_devices:
        # When jax has started already (a second run in one process), its devices are what they
        # are, and the mesh is checked against them.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", config.parallel.cpu_devices)
    if config.train.precision is Precision.FLOAT64:
        jax.config.update("jax_enable_x64", True)
    if config.logging.compile_cache:
        folder = os.path.expanduser(config.logging.compile_cache)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def load_params(reference: str, model: ModelDefinition, mesh: Mesh, tokenizer_hash: str) -> Params:
    """Weights of another run's checkpoint (`RUN` or `RUN@STEP`), laid out for `model`.

    Raises:
        CheckpointError: there is no such checkpoint, or its model or tokenizer is another.
    """
    folder, step = require_run(reference)
    params, step = restore_params(folder, step, model, mesh, "params")
    checkpoints = Checkpoints(folder.checkpoints)
    check_tokenizer(checkpoints.metadata(step), tokenizer_hash, checkpoints.path(step))
    return params


def restore_params(
    folder: RunFolder, step: int | None, model: ModelDefinition, mesh: Mesh, kind: str
) -> tuple[Params, int]:
    """The `params` or `average` of a checkpoint with its variables, and its step.

    Raises:
        CheckpointError: there is no such checkpoint, or its model is another.
    """
    layout = abstract_state(model, optax.identity(), average=kind == "average", mesh=mesh)
    prefixes = (f"{kind}.", "variables.")
    wanted = canonical_targets(layout, model)
    targets = {name: t for name, t in wanted.items() if name.startswith(prefixes)}
    arrays, _, step = Checkpoints(folder.checkpoints).restore(step, targets, partial=True)
    # What was not read keeps its description; only the weights are taken out.
    state = from_canonical(wanted | arrays, layout, model)
    return (state.average if kind == "average" else state.params) | state.variables, step


def _resolve(
    config: RunConfig, tokenizer: Tokenizer, sources: dict[str, Source], mesh: Mesh
) -> Resolved:
    facts = facts_of(
        config,
        vocab_size=tokenizer.vocab_size,
        train_tokens=sum(source.tokens.num_tokens for source in sources.values()),
        num_devices=mesh.size,
        platform=hardware_of(mesh.devices.flat[0]).platform,
        data_shards=batch_multiple(mesh),
    )
    return resolve(config, facts)


def _saved_config(folder: RunFolder) -> dict[str, Any] | None:
    """The config of the run that the folder holds; None where nothing was trained yet.

    A run that ended before its first step (a mistake in its config) leaves nothing to protect.
    """
    began = storage.exists(folder.metrics) and storage.size(folder.metrics) > 0
    if not began and not storage.list_names(folder.checkpoints):
        return None
    if storage.exists(folder.config):
        with contextlib.suppress(yaml.YAMLError):
            saved = yaml.safe_load(storage.read_text(folder.config))
            if isinstance(saved, dict):
                return saved
    raise ConfigError(
        f"{folder.config} is missing or damaged, but a run was trained in this folder; "
        f"`maxlm checkpoints show {folder.path} --config` prints it from the newest checkpoint "
        "(write it there), or give this run another name (name=…)"
    )


def _check_meaning(folder: RunFolder, saved: dict[str, Any] | None, config: RunConfig) -> None:
    """Refuse the folder of another run. Raises ConfigError with the differences."""
    changes = meaning_diff(saved, config) if saved is not None else []
    if changes:
        listing = "\n  ".join(changes)
        raise ConfigError(
            f"{folder.path} holds a run with another config:\n  {listing}\n"
            "give this run another name (name=…), or start it from that run's state with "
            f"--branch-from {folder.path}"
        )
