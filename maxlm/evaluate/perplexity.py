"""Loss, perplexity and bits per byte of a model on a set of text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from maxlm.batch import Batch
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.placement import on_mesh_of
from maxlm.train.step import count_bytes

# Batches that may be dispatched and unfinished (see `maxlm.train.loop.MAX_IN_FLIGHT`).
MAX_IN_FLIGHT = 8


class EvalSums(NamedTuple):
    """Sums over a batch, on the device."""

    nll: jax.Array  # nats
    weight: jax.Array  # targets
    target_bytes: jax.Array  # bytes of text that they stand for


EvalStep = Callable[[Params, Batch], EvalSums]


def make_eval_step(
    model: ModelDefinition,
    token_bytes: jax.Array,
    compiler_options: Mapping[str, Any] | None = None,
) -> EvalStep:
    """A `(params, batch) -> EvalSums` on the parameters' mesh, compiled with XLA's `compiler_options`."""

    def eval_step(params: Params, batch: Batch) -> EvalSums:
        sums = model.bind(params).loss(batch)
        return EvalSums(sums.nll, sums.weight, count_bytes(batch, token_bytes))

    compiled = jax.jit(eval_step, compiler_options=dict(compiler_options or {}))

    def on_mesh(params: Params, batch: Batch) -> EvalSums:
        with on_mesh_of(params):
            return compiled(params, batch)

    return on_mesh


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[Batch]) -> dict[str, Any]:
    """Evaluate over batches on the devices; sums are added in float64 on the host.

    Returns:
        `loss` in nats per token, `perplexity`, `bits_per_byte`, `tokens` and `seconds`.
    """
    *_, result = evaluate_by_batch(eval_step, params, batches)
    assert result is not None
    return result


def evaluate_by_batch(
    eval_step: EvalStep, params: Params, batches: Iterable[Batch]
) -> Iterator[dict[str, Any] | None]:
    """Like `evaluate`; yields None after each batch, where it may be given up, and the result last."""
    start = time.perf_counter()
    sums: list[EvalSums] = []
    for batch in batches:
        sums.append(eval_step(params, batch))
        if len(sums) > MAX_IN_FLIGHT:
            sums[-MAX_IN_FLIGHT].nll.block_until_ready()
        yield None
    host = jax.device_get(sums)
    nll = math.fsum(float(s.nll) for s in host)
    tokens = math.fsum(float(s.weight) for s in host)
    size = math.fsum(float(s.target_bytes) for s in host)
    loss = nll / tokens if tokens else math.nan
    yield {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "tokens": int(tokens),
        "seconds": time.perf_counter() - start,
    }
