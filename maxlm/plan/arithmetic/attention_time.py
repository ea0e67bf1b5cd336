"""Seconds of attention in a layer, forward and backward, without compiling it.

In: a `Job` and how far a layer sees; out: seconds of one pass over a micro-batch. The splash kernel is
counted by blocks of queries and keys, each at the scheduled bundles of the compiler; what XLA computes
itself (`chunked`, and the ring of `context`), and cuDNN, by FLOPs at a stated share of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.config.choices import AttentionKernel, AttentionSpan, ContextAttention
from maxlm.config.head_widths import value_dim
from maxlm.kernels.attention.calls import attention_call
from maxlm.kernels.attention.choose import choose
from maxlm.kernels.attention.splash import choose_blocks
from maxlm.plan.arithmetic.job import Job

# Cycles of a block of 1024 queries and keys of a head of 128 on one TensorCore, forward and backward (the
# kernels of both gradients): scheduled bundles, one a cycle, by libtpu 0.0.52 (docs/kernels.md).
BLOCK_CYCLES = {"v5e": (5_920, 14_560), "v5p": (6_110, 14_890), "v6e": (4_570, 10_530)}
# Not measured: v4 has v5p's matrix units, TPU7x those of v6e.
BLOCK_CYCLES |= {"v4": BLOCK_CYCLES["v5p"], "tpu7x": BLOCK_CYCLES["v6e"]}
# The same scores take so many times as long in blocks of 512 (v5p). Smaller ones are taken to lose as much
# again with each halving.
_HALVED = (1.41, 1.31)

# Cycles of a TensorCore for a score of a query and a key, in XLA's own blocks, forward and backward: bound by
# element-wise work on scores. Two small programs (libtpu 0.0.52, heads of 128): on v5e 0.051 to 0.065 and 0.075
# to 0.088, on v6e 0.062 and 0.070.
_SCORE_CYCLES = (0.06, 0.08)
# Shares of the peak on GPUs, of causal FLOPs. XLA's blocks: not measured. cuDNN: FlashAttention-3 on H100
# (arXiv:2407.08608, figures 5 and 6, causal, 8k and 16k tokens, head_dim 128: about 600 TFLOP/s forward and
# 500 backward of 989), which cuDNN's attention comes near.
_XLA = (0.25, 0.25)
_CUDNN = (0.6, 0.5)


@dataclass(frozen=True)
class AttentionTime:
    """Seconds of one pass of a layer.

    Attributes:
        forward: of the forward kernel.
        backward: of the gradients.
        is_kernel: whether a kernel outside of XLA does it.
    """

    forward: float
    backward: float
    is_kernel: bool


def attention_time(job: Job, seen: int) -> AttentionTime:
    """Attention of a layer on one device over a micro-batch.

    Args:
        job: what and where.
        seen: keys that a query sees at most.
    """
    model, context = job.model, job.mesh["context"]
    assert model.head_dim
    heads = model.num_heads / job.mesh["tensor"]
    ulysses = context > 1 and job.context_method is ContextAttention.ULYSSES
    own = context == 1 or ulysses
    kernel = _kernel(job, seen) if own else AttentionKernel.CHUNKED
    if kernel is AttentionKernel.SPLASH:
        return _splash(job, heads / context, seen)
    pairs = job.rows * _pairs(job.length, seen) / context
    if job.chip.clock is not None:
        scores = pairs * heads / job.chip.cores / job.chip.clock
        forward, backward = (scores * cycles for cycles in _SCORE_CYCLES)
        return AttentionTime(forward, backward, False)
    # 2 FLOPs for a query, a key and a width of the head: forward 1 matmul of the keys' and 1 of the
    # values' width, backward 3 and 2.
    keys, values = (2.0 * pairs * heads * width for width in (model.head_dim, value_dim(model)))
    forward, backward = _CUDNN if kernel is AttentionKernel.CUDNN else _XLA
    peak = job.chip.peak
    is_kernel = kernel is AttentionKernel.CUDNN
    times = (keys + values) / (peak * forward), (3 * keys + 2 * values) / (peak * backward)
    return AttentionTime(*times, is_kernel)


def _pairs(length: int, seen: int) -> float:
    """Queries × keys that a row's mask leaves."""
    return length * seen - seen * (seen - 1) / 2 if seen < length else length * (length + 1) / 2


def _kernel(job: Job, seen: int) -> AttentionKernel:
    model, precision = job.model, job.config.train.precision
    assert model.num_kv_heads and model.head_dim and precision
    span = AttentionSpan.LOCAL if seen < job.length else AttentionSpan.GLOBAL
    heads = model.num_heads, model.num_kv_heads
    call = attention_call(model, span, length=job.length, heads=heads, dtype=precision.value)
    return choose(call, job.hardware, job.config.parallel.attention).kernel


def _splash(job: Job, heads: float, seen: int) -> AttentionTime:
    chip, model, length = job.chip, job.model, job.length
    assert model.head_dim and chip.clock
    window = seen if seen < length else None
    itemsize = 2 if job.config.train.precision == "bfloat16" else 4
    block = choose_blocks(length, window, model.head_dim * itemsize).size
    blocks = heads * job.rows * _blocks(length // block, seen, block)
    # A head narrower than the matrix unit takes it whole.
    units = [max(1, -(-width // 128)) for width in (model.head_dim, value_dim(model))]
    wide = sum(units) / 2 * (itemsize / 2)
    scale = (block / 1024) ** 2 * wide
    halvings = (1024 // block).bit_length() - 1
    forward, backward = (
        blocks * cycles * scale * slower**halvings / chip.cores / chip.clock
        for cycles, slower in zip(BLOCK_CYCLES[chip.name], _HALVED, strict=True)
    )
    return AttentionTime(forward, backward, True)


def _blocks(count: int, seen: int, block: int) -> int:
    """Blocks of queries × keys that causality and the window leave."""
    reach = -(-(seen - 1) // block) + 1  # blocks of keys that one of queries touches
    return sum(min(i + 1, reach) for i in range(count))
