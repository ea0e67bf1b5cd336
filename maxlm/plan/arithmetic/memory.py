"""Bytes on a device at a step's peak, without compiling it: exact for the state, estimated for the rest.

In: a `Job`; out: a `Memory`. What a layer keeps follows from its shapes and the policy of
rematerialisation (docs/memory.md); of the rest, the largest things that are alive together are added
up. `habits.py`'s figures and these were held against compiled programs; docs/search.md has the table.
"""

from __future__ import annotations

from collections import Counter

from maxlm.config.choices import Rematerialization
from maxlm.config.expert_layers import layers_of
from maxlm.model.decoder import padded_vocab
from maxlm.parallel.axes import TABLE
from maxlm.plan.arithmetic.job import Job
from maxlm.plan.arithmetic.layer_work import OFFLOADS, WIDE, itemsize, layer_work
from maxlm.plan.arithmetic.state_bytes import definition, state_bytes
from maxlm.plan.result import Memory

_BATCH_ARRAYS = 5  # tokens, targets, loss weights, segments, positions: 4 bytes an element


def analytic_memory(job: Job) -> Memory:
    """The memory of a job on one device."""
    state = state_bytes(job)
    kept = sum(
        layer_work(job, layer).kept_bytes * count
        for layer, count in Counter(layers_of(job.model)).items()
    )
    kept *= job.idle / job.mesh["stage"]  # a tick of the bubble keeps as much as another
    offloads = job.policy in OFFLOADS
    gradients = state.parameters * (2 if job.accumulation > 1 else 1)
    batch = job.tokens * job.accumulation * _BATCH_ARRAYS * 4
    return Memory(
        parameters=state.parameters,
        optimizer=state.optimizer,
        gradients=gradients,
        activations=0 if offloads else round(kept),
        temporaries=round(_temporaries(job, state.parameters)),
        other=state.counters + batch,
        host=round(kept) if offloads else 0,
        capacity=job.chip.usable_bytes,
    )


def _temporaries(job: Job, parameters: int) -> float:
    """Weights in the compute type, and the larger of a layer's backward pass and the loss."""
    size = itemsize(job)
    cast = parameters * size / WIDE if size < WIDE else 0.0
    return cast + max(_of_layers(job, size), _of_loss(job, size))


def _of_layers(job: Job, size: int) -> float:
    """Of the widest layer: its whole intermediates and as much of gradients, and its weights."""
    works = [layer_work(job, layer) for layer in set(layers_of(job.model))]
    inner = max(work.inner for work in works) * size / job.microbatches
    policy = job.policy
    if policy is Rematerialization.NONE:
        inner *= 0.5  # they are kept anyway, and counted there
    return inner + 3 * _layer_weights(job) * size


def _layer_weights(job: Job) -> float:
    """Elements of the largest layer's matrices on a device once gathered."""
    total = 0.0
    for info in definition(job).parameters.values():
        if info.kind.value == "matrix":
            shards = 1
            for axis in info.axes:
                if axis not in ("embed", "expert_embed", "latent", "layers"):
                    shards *= job.size(*TABLE[axis])
            total += info.size / shards
    return total / job.model.num_layers


def _of_loss(job: Job, size: int) -> float:
    """A chunk's logits, the table, and the gradients of table and hidden states."""
    vocab = padded_vocab(job.model) / job.mesh["tensor"]
    width, tokens = job.model.embed_dim, job.outer_tokens
    chunk = min(tokens, job.config.train.loss_chunk or tokens)
    logits = chunk * vocab * WIDE
    table = vocab * width * (size + WIDE)
    return logits + table + 3 * tokens * width * size
