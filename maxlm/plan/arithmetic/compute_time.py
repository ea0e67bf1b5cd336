"""Seconds of a step's matmuls, element-wise work and attention on one device, without compiling it.

In: a `Job`; out: seconds by kind, over the whole step. Matmuls are FLOPs at a share of the peak, with
their dims rounded up to the matrix unit; element-wise work is bytes over what the compiler counts a
cycle (on GPUs over memory bandwidth).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from maxlm.config.choices import OptimizerKind, PositionKind
from maxlm.config.expert_layers import Layer, layers_of
from maxlm.config.head_widths import rotated_dim
from maxlm.model.decoder import padded_vocab
from maxlm.plan.arithmetic.attention_time import attention_time
from maxlm.plan.arithmetic.habits import (
    ELEMENTWISE_BYTES_PER_CYCLE,
    ELEMENTWISE_GPU,
    GROUPED_ROWS,
    GROUPED_TPU,
    PASSES,
    PASSES_GPU,
    habits_of,
)
from maxlm.plan.arithmetic.job import Job
from maxlm.plan.arithmetic.layer_work import LayerWork, Matmul, itemsize, layer_work
from maxlm.plan.arithmetic.state_bytes import definition, shards_of, state_bytes

# A matmul's FLOPs and bytes are neither hidden by each other nor added up: between 1 (their sum) and
# infinity (the larger), 1.5 comes near the compiler's cycles of matmuls of widths 512 to 14336.
_BLEND = 1.5


@dataclass(frozen=True)
class Part:
    """Seconds of a named part of a step.

    Attributes:
        name: for people.
        kind: `matmul`, `kernel` or `other`.
        seconds: of a step.
        times: how often it runs.
    """

    name: str
    kind: str
    seconds: float
    times: int


def compute_parts(job: Job) -> list[Part]:
    """What a device computes in a step, the bubble of a pipeline included."""
    found: list[Part] = []
    for layer, count in Counter(layers_of(job.model)).items():
        times = count / job.mesh["stage"] * job.accumulation
        found += _of_layer(job, layer, times)
    return [*found, *_of_loss(job), *_of_state(job)]


def _of_layer(job: Job, layer: Layer, times: float) -> list[Part]:
    work = layer_work(job, layer)
    label = "experts" if layer.has_experts else layer.span.value
    runs, scale = max(1, round(times)), times * job.idle
    slowdown = habits_of(job).slowdown
    attention = attention_time(job, work.seen)
    again = 2 if work.attention_runs_again else 1
    kind = "kernel" if attention.is_kernel else "other"
    parts = []
    for matmul in work.matmuls:
        passes = 3 + (matmul in work.repeated)
        seconds = matmul_seconds(job, matmul) * passes * scale * slowdown
        name = matmul.name.replace("_", " ")
        made_by = "kernel" if _in_kernel(job, matmul) else "matmul"
        parts.append(Part(f"{name} ({label} layers)", made_by, seconds, runs * passes))
    seconds = (attention.forward * again + attention.backward) * scale
    parts.append(Part(f"attention ({label} layers)", kind, seconds, runs * (again + 1)))
    rotates = layer.has_rope and job.model.positions is PositionKind.ROPE
    if rotates and job.chip.platform == "tpu":
        passes = 2 + _rotates_again(job, work)
        seconds = passes * _rotation_seconds(job, work) * scale * slowdown
        parts.append(Part(f"rotation ({label} layers)", "matmul", seconds, passes * runs))
    seconds = elementwise_seconds(job, _elementwise_bytes(job, work)) * scale * slowdown
    parts.append(Part(f"element-wise ({label} layers)", "other", seconds, runs))
    return parts


def matmul_seconds(job: Job, matmul: Matmul) -> float:
    """One pass of a matmul on a device."""
    if not _in_kernel(job, matmul):
        return _seconds(job, matmul.rows, matmul.inputs, matmul.outputs)
    # A tile of rows in which an expert's end is multiplied once more, whole.
    assert job.model.num_experts
    groups = job.model.num_experts // job.mesh["expert"]
    rows = matmul.rows + GROUPED_ROWS * (groups - 1)
    flops = 2.0 * rows * matmul.inputs * matmul.outputs
    return flops / (job.chip.peak * GROUPED_TPU[job.chip.name])


def _in_kernel(job: Job, matmul: Matmul) -> bool:
    """Whether a kernel outside of XLA multiplies."""
    return matmul.grouped and job.chip.platform == "tpu"


def _rotates_again(job: Job, work: LayerWork) -> bool:
    """Whether the backward pass repeats RoPE: queries and keys are kept behind it, or before their norms."""
    kept = work.kept_names
    return kept is not None and (job.model.qk_norm or "query" not in kept)


def _rotation_seconds(job: Job, work: LayerWork) -> float:
    """Of RoPE, once: products of every head with a square of its width.

    Latent attention rotates a part of each query that lies by itself, and a key that the heads share.
    """
    model = job.model
    assert model.head_dim and model.num_kv_heads
    is_latent = model.kv_latent_dim is not None
    width = round(rotated_dim(model)) if is_latent else model.head_dim
    keys = 1 if is_latent else model.num_kv_heads
    rows = work.widths["query"] / model.head_dim * (1 + keys / model.num_heads)
    return _seconds(job, rows, width, width)


def elementwise_seconds(job: Job, moved: float) -> float:
    """Of so many bytes read and written."""
    chip = job.chip
    if chip.clock is None:
        return moved / (chip.memory_bandwidth * ELEMENTWISE_GPU)
    counted = ELEMENTWISE_BYTES_PER_CYCLE[chip.name] * chip.cores * chip.clock
    return moved / min(counted, chip.memory_bandwidth)


def _seconds(job: Job, *dims: float) -> float:
    """Of a matmul: between the larger of its FLOPs' and its bytes' time and their sum."""
    flops = 2.0 * math.prod(max(dim, _unit(job)) for dim in dims)
    bytes_moved = itemsize(job) * sum(math.prod(dims) / dim for dim in dims)
    computing = flops / (job.chip.peak * habits_of(job).matmul)
    moving = bytes_moved / job.chip.memory_bandwidth
    return float((computing**_BLEND + moving**_BLEND) ** (1 / _BLEND))


def _unit(job: Job) -> float:
    """Side of the matrix unit, below which a dim costs the whole of it."""
    if job.chip.platform == "gpu":
        return 64.0
    return 256.0 if job.chip.name in ("v6e", "tpu7x") else 128.0


def _elementwise_bytes(job: Job, work: LayerWork) -> float:
    """Norms, sums and activations of a layer, forward and backward.

    What is computed again adds a quarter. Of what is kept, what matmuls do not write themselves is
    written and read once more: at most three arrays of the residual width.
    """
    widths, passes = work.widths, PASSES.get(job.chip.name, PASSES_GPU)
    hidden = max(widths["mlp_up"], widths.get("mlp_gate", 0.0))
    # Sorted, spread and collected again; how often was found in qwen3-30b-a3b on v5p (libtpu 0.0.52).
    elements = passes.residual * widths["block_input"] + passes.query * widths["query"]
    elements += passes.hidden * hidden + 22 * work.rows
    again = 1.25 if work.repeated else 1.0
    kept = min(work.kept_bytes, 3 * widths["block_input"] * work.itemsize)
    return elements * work.itemsize * again + 2 * kept


def _of_loss(job: Job) -> list[Part]:
    """Logits, their softmax and the two gradients, which a chunk's logits are read for once."""
    vocab = padded_vocab(job.model) / job.mesh["tensor"]
    tokens, width = job.outer_tokens, float(job.model.embed_dim)
    passes = job.accumulation
    seconds = 3 * _seconds(job, tokens, width, vocab) * passes
    # Of the passes over float32 logits all but one are fused into matmuls (seen in llama3-8b on v5p).
    moved = 4.0 * tokens * vocab
    return [
        Part("output projection", "matmul", seconds, 3 * passes),
        Part("softmax of the loss", "other", elementwise_seconds(job, moved) * passes, passes),
    ]


def _of_state(job: Job) -> list[Part]:
    """The update: weights, moments and gradients read, and all but the last written."""
    state = state_bytes(job)
    gradients = state.parameters
    moved = 2.0 * (state.parameters + state.optimizer) + 2.0 * gradients
    parts = [Part("optimizer", "other", moved / job.chip.memory_bandwidth, 1)]
    casts = gradients * 1.5 * job.accumulation
    parts.append(Part("weights to bfloat16", "other", casts / job.chip.memory_bandwidth, 1))
    optimizer = job.config.optimizer
    if optimizer.kind is OptimizerKind.MUON:
        parts.append(_orthogonalisation(job, optimizer.muon_iterations))
    return parts


def _orthogonalisation(job: Job, iterations: int) -> Part:
    """Newton-Schulz of every matrix: 3 matmuls an iteration over its shorter side."""
    flops = 0.0
    for info in definition(job).parameters.values():
        if info.kind.value != "matrix":
            continue
        inputs = outputs = 1
        for dim in info.reduction_dims:
            inputs *= info.shape[dim]
        for dim in info.output_dims:
            outputs *= info.shape[dim]
        matrices = info.size / (inputs * outputs)
        short = min(inputs, outputs)
        one = 4.0 * short * inputs * outputs + 2.0 * short**3
        flops += matrices * one * iterations / shards_of(info, job)
    seconds = flops / (job.chip.peak * habits_of(job).matmul)
    return Part("orthogonalisation of updates", "matmul", seconds, iterations)
