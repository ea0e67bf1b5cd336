"""The train step: a pure function `(state, batch) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from maxlm.batch import Batch
from maxlm.model.balance import ModelLoss, RoutingMetrics, moved_biases, routing_metrics
from maxlm.model.definition import ModelDefinition, Params
from maxlm.parallel.axes import sum_over_replicas
from maxlm.train.optimizer import global_norm
from maxlm.train.state import TrainState

LossFunction = Callable[[Params, Batch], ModelLoss]
StepFunction = Callable[[TrainState, Batch], "tuple[TrainState, StepMetrics]"]


class StepMetrics(NamedTuple):
    """Scalars of one step, on the device."""

    nll: jax.Array  # sum of negative log-likelihoods in nats
    weight: jax.Array  # number of targets
    target_bytes: jax.Array  # bytes of text that the targets stand for
    grad_norm: jax.Array  # before clipping
    param_norm: jax.Array  # after the step
    skipped: jax.Array  # steps skipped so far
    rate: jax.Array  # fraction of the peak learning rates
    routing: RoutingMetrics | None = None  # of experts


def make_train_step(
    model: ModelDefinition,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    *,
    clip_norm: float | None,
    z_loss: float = 0.0,
    accumulation: int = 1,
    average_decay: float | None = None,
    token_bytes: jax.Array,
) -> StepFunction:
    """The step of a run; jit it with the state donated.

    Args:
        model: the model to train.
        optimizer: updates from gradients, at the peak learning rate.
        rate: fraction of the peak learning rate by step.
        clip_norm: largest global gradient norm; None: not clipped.
        z_loss: weight of log²Z.
        accumulation: micro-batches per step.
        average_decay: decay of the averaged weights; None: none are kept.
        token_bytes: `[vocab_size]` int32, UTF-8 bytes that each token stands for.

    Where the gradients are not finite, parameters and optimizer state stay as they are, on the
    device; the step and the skip counter advance.
    """

    bias_rate = model.config.router_bias_rate

    def loss_sums(params: Params, variables: Params, batch: Batch) -> tuple[jax.Array, ModelLoss]:
        sums = model.bind(params | variables).loss(batch, z_loss=z_loss)
        return sums.total, sums

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        gradients = sum_over_replicas(partial(_accumulate, loss_sums, accumulation=accumulation))
        grads, sums = gradients((state.params, state.variables), batch)
        count = jnp.maximum(sums.weight, 1.0)
        grad_norm = global_norm(grads) / count
        # The mean and the clipping are one factor: one pass over the gradients less.
        scale = 1 / count
        if clip_norm is not None:
            scale *= jnp.minimum(1.0, clip_norm / (grad_norm + 1e-6))
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        fraction = rate(state.step)
        updates = jax.tree.map(lambda u: u * fraction.astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        average = _averaged(state.average, params, average_decay, state.step)
        variables = moved_biases(state.variables, sums.routing, bias_rate)

        finite = jnp.isfinite(grad_norm)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        new = (params, variables, average, opt_state)
        old = (state.params, state.variables, state.average, state.opt_state)
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        metrics = StepMetrics(
            nll=sums.nll,
            weight=sums.weight,
            target_bytes=count_bytes(batch, token_bytes),
            grad_norm=grad_norm,
            param_norm=global_norm(kept[0]),
            skipped=skipped,
            rate=fraction,
            routing=sums.routing and routing_metrics(sums.routing, sums.weight),
        )
        return TrainState(state.step + 1, skipped, *kept), metrics

    return train_step


def count_bytes(batch: Batch, token_bytes: jax.Array) -> jax.Array:
    """UTF-8 bytes that the counted targets of a batch stand for, as a float32 scalar."""
    sizes = jnp.asarray(token_bytes)[batch.targets]
    return jnp.sum(sizes * (batch.loss_weights > 0), dtype=jnp.float32)


def _accumulate(
    loss_sums: Callable, weights: tuple[Params, Params], batch: Batch, *, accumulation: int
) -> tuple[Params, ModelLoss]:
    """Gradients by the first of `weights` and sums, over the micro-batches of a batch."""
    grad = jax.grad(loss_sums, has_aux=True)
    if accumulation == 1:
        return grad(*weights, batch)

    def split(x: jax.Array) -> jax.Array:
        # Rows i, i+n, i+2n … form a micro-batch, so that each is spread over every data shard.
        rows = x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:])
        return rows.swapaxes(0, 1)

    def add(total: tuple, micro: Batch) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, grad(*weights, micro)), None

    first, *_ = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad, *weights, jax.tree.map(lambda x: split(x)[0], batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jax.tree.map(split, batch), length=first.shape[0])
    return total


def _averaged(average: Params, params: Params, decay: float | None, step: jax.Array) -> Params:
    """The average after a step; early on it forgets faster, so that it loses the initialisation."""
    if decay is None:
        return average
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    # A step towards the weights, and not a sum of two shares: of equals it is exact.
    return {n: (a + (1 - kept) * (params[n] - a)).astype(a.dtype) for n, a in average.items()}
