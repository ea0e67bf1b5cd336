"""The typed `RunConfig`: every option of maxlm, in small nested sections.

A field is an option a user may set; its description says what it does, and a default of `None`
means "derived by a stated rule" (see `maxlm.config.derive`). A value that can always be derived is
no field. Unknown keys are refused. `tests/config/test_options.py` counts the fields: under 150.
"""

from __future__ import annotations

from pydantic import Field

from maxlm.config.choices import Activation as Activation
from maxlm.config.choices import (
    AttentionKernel,
    ContextAttention,
    ExpertExchange,
    ExpertMatmul,
    OptimizerKind,
    Packing,
    Precision,
    Rematerialization,
    ScheduleKind,
)
from maxlm.config.choices import AttentionSpan as AttentionSpan
from maxlm.config.choices import BiasKind as BiasKind
from maxlm.config.choices import MatrixInit as MatrixInit
from maxlm.config.choices import MLPKind as MLPKind
from maxlm.config.choices import NormKind as NormKind
from maxlm.config.choices import NormPlacement as NormPlacement
from maxlm.config.choices import PositionKind as PositionKind
from maxlm.config.choices import ProjectionInit as ProjectionInit
from maxlm.config.choices import QKNormWidth as QKNormWidth
from maxlm.config.choices import RopeScalingKind as RopeScalingKind
from maxlm.config.choices import RouterScoring as RouterScoring
from maxlm.config.duration import Duration as Duration
from maxlm.config.duration import DurationField
from maxlm.config.duration import DurationUnit as DurationUnit
from maxlm.config.duration import parse_duration as parse_duration
from maxlm.config.model_config import ModelConfig as ModelConfig
from maxlm.config.rope_scaling import RopeScaling as RopeScaling
from maxlm.config.section import Section as Section


class SourceConfig(Section):
    """One token store in the mixture."""

    store: str = Field(
        description="Folder of a token store (local or gs://), written by `maxlm data tokenize`."
    )
    split: str = Field("train", description="Which of the store's splits.")
    weight: float = Field(
        1.0, gt=0, description="Share of the examples, relative to the other sources."
    )


class PhaseConfig(Section):
    """A stretch of training with its own mixture, length or batch; unset values are the run's."""

    duration: DurationField | None = Field(
        None,
        description="How long; the last phase may leave it open. In tokens, examples or steps.",
    )
    weights: dict[str, float] = Field(
        {},
        description="Weight by source name; unset: the sources' own weights. 0 leaves a source out.",
    )
    length: int | None = Field(None, ge=2, description="Tokens per example in this phase.")
    batch_size: int | None = Field(None, ge=1, description="Examples per step in this phase.")


class DataConfig(Section):
    """What is read, in which order and shape."""

    mixture: dict[str, SourceConfig] = Field({}, description="Sources by name.")
    phases: list[PhaseConfig] = Field(
        [], description="Stretches of training, first to last; none: one phase."
    )
    tokenizer: str | None = Field(
        None,
        description="Tokenizer that the stores must have been written with; derived: the stores' own.",
    )
    length: int = Field(1024, ge=2, description="Tokens per example.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples per step over all devices; derived from the token budget.",
    )
    packing: Packing = Field(
        Packing.CUT,
        description="cut: windows of the token stream, nothing lost; whole: documents packed uncut by best fit, longer ones cut.",
    )
    seed: int = Field(0, ge=0, description="Seed of the data order.")
    workers: int = Field(2, ge=0, description="Threads that prepare batches ahead.")
    prefetch: int = Field(4, ge=1, description="Batches prepared ahead.")


class ParallelConfig(Section):
    """The mesh: sizes of its axes; -1 takes what is left."""

    replica: int = Field(1, ge=-1, description="Data parallel without sharded parameters.")
    stage: int = Field(1, ge=-1, description="Layers split into the stages of a pipeline.")
    fsdp: int = Field(-1, ge=-1, description="Data parallel with parameters sharded.")
    context: int = Field(1, ge=-1, description="Each sequence's tokens split.")
    expert: int = Field(
        1, ge=-1, description="Experts split; outside of them, data parallel as fsdp."
    )
    tensor: int = Field(1, ge=-1, description="Heads, MLP and vocabulary sharded.")
    context_attention: ContextAttention = Field(
        ContextAttention.AUTO,
        description="Attention where a sequence's tokens are split: ring, ulysses (all-to-all to heads), all_gather (simple), or auto, by the rule in docs/context.md.",
    )
    pipeline_rounds: int = Field(
        1,
        ge=1,
        description="How often a row goes around the stages: more rounds, of fewer layers each, idle less and transfer more.",
    )
    microbatches: int | None = Field(
        None,
        ge=1,
        description="Parts of a batch that follow each other through the stages; unset: 4 per stage, or 3, 2, 1 where the rows divide only so.",
    )
    cpu_devices: int | None = Field(
        None, ge=1, description="On a CPU: host devices to split the cores into; derived: 1."
    )
    rematerialization: Rematerialization = Field(
        Rematerialization.NONE,
        description="What the backward pass computes again: none; matmuls (all but matmuls and attention); attention (the MLP too); full (all but each block's input); offload_attention, offload_inputs (as attention and full, the rest kept in host memory). See docs/memory.md.",
    )
    attention: AttentionKernel = Field(
        AttentionKernel.AUTO,
        description="Who computes attention: auto (the best that the hardware and the shape allow), reference, chunked, splash (TPU) or cudnn (NVIDIA).",
    )
    expert_matmul: ExpertMatmul = Field(
        ExpertMatmul.AUTO,
        description="Kernel of the experts' matmuls: auto (by the hardware, said at the start), reference, blocks, ragged_dot or megablox (TPU).",
    )
    expert_exchange: ExpertExchange = Field(
        ExpertExchange.AUTO,
        description="How tokens get to the devices of their experts: auto (on TPU and GPU all_to_all where a token visits fewer experts than expert has devices; else gather), gather or all_to_all.",
    )
    compiler_options: dict[str, str | int | float | bool] = Field(
        {},
        description="XLA options of the train and evaluation programs; none by default.",
    )
    scan_unroll: int | None = Field(
        None,
        ge=1,
        description="Blocks per scan iteration; derived: 1 on TPU and GPU, every block of a small model on CPU.",
    )


class OptimizerConfig(Section):
    """Updates by kind of parameter: matrices, embeddings, head, vectors."""

    kind: OptimizerKind = Field(
        OptimizerKind.ADAMW,
        description="adamw, or muon for the blocks' matrices with adamw for the rest.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW; derived from parameters and token budget.",
    )
    muon_learning_rate: float = Field(
        0.02, gt=0, description="Peak learning rate of Muon's orthogonalised updates."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Decoupled weight decay of matrices and embeddings, times the learning rate; vectors have none.",
    )
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="Nesterov momentum of Muon.")
    muon_iterations: int = Field(5, ge=1, description="Newton-Schulz iterations.")
    clip_norm: float | None = Field(
        1.0, gt=0, description="Global gradient norm is clipped to this; null: not clipped."
    )
    average_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep an exponential average of the weights with this decay, used for evaluation and saved.",
    )


class ScheduleConfig(Section):
    """The learning rate over training, as a fraction of its peak."""

    kind: ScheduleKind = Field(
        ScheduleKind.WSD, description="wsd (warm-up, stable, decay) or cosine."
    )
    warmup: DurationField | None = Field(
        None,
        description="Linear warm-up; derived: 1% of training, between 10 and 2000 steps, at most a tenth.",
    )
    decay_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="wsd: the last part of training, over which the rate falls linearly.",
    )
    final_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Rate at the end, as a fraction of the peak (cosine is often run with 0.1).",
    )


class TrainConfig(Section):
    """How long, in which precision, from which weights."""

    duration: DurationField | None = Field(
        None,
        description="Length of training; derived: 20 tokens per parameter, at most 4 epochs of the data.",
    )
    precision: Precision | None = Field(
        None,
        description="Compute type; masters stay float32. Derived: bfloat16 on TPU and GPU, float32 on CPU.",
    )
    accumulation: int = Field(
        1, ge=1, description="Micro-batches per step, whose gradients are summed before the update."
    )
    z_loss: float = Field(0.0, ge=0, description="Weight of log²Z in the loss (PaLM: 1e-4).")
    loss_chunk: int | None = Field(
        None,
        ge=1,
        description="Tokens of a device whose logits exist at once; derived: 4096, or what 512 MiB hold, on TPU and GPU; 512 on CPU.",
    )
    seed: int = Field(0, ge=0, description="Seed of the initial weights.")
    init_from: str | None = Field(
        None, description="Run folder (or RUN@STEP) whose weights this run starts with."
    )
    branch_from: str | None = Field(
        None,
        description="RUN@STEP whose weights, optimizer state and data position this run goes on "
        "from; set by `--branch-from`.",
    )
    deterministic: bool = Field(
        False,
        description="On GPU: bitwise repeatable operations, at a cost in speed (TPU and CPU always are).",
    )


class CheckpointConfig(Section):
    """When checkpoints are written and which are kept."""

    every: DurationField | None = Field(
        None,
        description="Between checkpoints; derived: 1/10 of training, at most 1000 steps. One is always written at the end.",
    )
    keep_last: int = Field(3, ge=1, description="Newest checkpoints to keep.")
    keep_every: DurationField | None = Field(
        None,
        description="Also keep the first checkpoint at or after each multiple of this, for good.",
    )


class EvalSetConfig(Section):
    """One named evaluation set: a split of a token store."""

    store: str = Field(description="Folder of a token store.")
    split: str = Field("validation", description="Which split.")
    length: int | None = Field(None, ge=2, description="Window; derived: data.length.")
    max_tokens: int | None = Field(
        None, ge=1, description="Read only the first so many tokens; unset: all."
    )


class EvalConfig(Section):
    """What is measured during training."""

    sets: dict[str, EvalSetConfig] = Field({}, description="Evaluation sets by name.")
    every: DurationField | None = Field(
        None,
        description="Between evaluations; derived: 1/10 of training. One is always made at the end.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Examples per evaluation step; derived: the training batch."
    )
    prompts: list[str] = Field([], description="Prompts continued at each evaluation, for the eye.")
    sample_tokens: int = Field(200, ge=1, description="Tokens of each continuation.")
    sample_temperature: float = Field(0.8, ge=0, description="Temperature of the continuations.")


class LoggingConfig(Section):
    """Where numbers go."""

    every: DurationField | None = Field(
        None, description="Between logged steps; derived: 1/500 of training, at most 10 steps."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard event files.")
    wandb_project: str | None = Field(
        None, description="Weights & Biases project; unset: not used."
    )
    compile_cache: str | None = Field(
        "~/.cache/maxlm/jax",
        description="Folder of compiled programs, kept between runs; null: none.",
    )


class RunConfig(Section):
    """A whole training run."""

    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run and of its folder.",
    )
    output: str = Field("runs", description="Folder of runs, local or gs://.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    logging: LoggingConfig = LoggingConfig()
