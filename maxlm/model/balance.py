"""Balancing the load of experts: the losses that do, the biases that do, and how even it is.

In: what the routers of a batch saw; out: sums that batches, micro-batches and replicas add up, as
those of the cross-entropy are.

The load-balance loss of a layer is E · Σₑ fₑ Pₑ (Switch, arXiv:2101.03961, section 2.2; k > 1 as in
OLMoE, arXiv:2409.02060): f is the share of all visits that go to an expert, P the mean of its
scores; both over the tokens of the whole batch, of all devices, without padding. It is 1 where the
load is even. The z-loss is the mean squared log-normaliser of the router (ST-MoE, arXiv:2202.08906).
Of layers, the mean is taken. f carries no gradient, so the loss is linear in P and each replica can
give its own share of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config.schema import ModelConfig
from maxlm.kernels.cross_entropy import LossSums
from maxlm.model.router import Load
from maxlm.parallel.axes import over_replicas


class RoutingSums(NamedTuple):
    """Sums over batches; losses are times the targets' weights, as the cross-entropy is."""

    visits: dict[str, jax.Array]  # [L, E] by the name of the router: visits of tokens to experts
    dropped: jax.Array  # visits without a place
    load_balance: jax.Array
    z: jax.Array


class ModelLoss(NamedTuple):
    """LossSums of a whole model, and what its routers saw; None without experts."""

    total: jax.Array  # the one to differentiate
    nll: jax.Array
    weight: jax.Array
    routing: RoutingSums | None


def with_routing(sums: LossSums, loads: dict[str, Load], config: ModelConfig) -> ModelLoss:
    """Add the routers' losses to the cross-entropy's.

    Args:
        sums: of the cross-entropy.
        loads: by name of the router, every array with a leading `layers` dim.
        config: weights of the losses.
    """
    if not loads:
        return ModelLoss(*sums, None)
    whole = {name: over_replicas(load) for name, load in loads.items()}
    layers = sum(load.tokens.shape[0] for load in loads.values())
    balance = sum(_load_balance(loads[name], whole[name]).sum() for name in loads) / layers
    z = sum((loads[n].squared_log_z / _count(whole[n].tokens)).sum() for n in loads) / layers
    weight = over_replicas(sums.weight)
    auxiliary = config.load_balance_loss * balance + config.router_z_loss * z
    routing = RoutingSums(
        visits={name: load.visits for name, load in loads.items()},
        dropped=sum((load.dropped.sum() for load in loads.values()), jnp.zeros(())),
        load_balance=weight * balance,
        z=weight * z,
    )
    return ModelLoss(
        sums.total + weight * auxiliary, sums.nll, sums.weight, jax.lax.stop_gradient(routing)
    )


class RoutingMetrics(NamedTuple):
    """How the routing of a step went, in scalars on the device."""

    load_max: jax.Array  # visits of the busiest expert over the mean, in the worst layer
    load_min: jax.Array  # likewise of the idlest
    load_balance: jax.Array
    z: jax.Array
    dropped: jax.Array  # fraction of the visits


def routing_metrics(sums: RoutingSums, weight: jax.Array) -> RoutingMetrics:
    """Metrics of a step's sums; `weight` is that of its targets."""
    loads = jnp.concatenate(
        [v / _count(v.mean(-1, keepdims=True)) for v in sums.visits.values()]
    )  # [all layers, E]
    visits = sum((v.sum() for v in sums.visits.values()), jnp.zeros(()))
    weight = _count(weight)
    return RoutingMetrics(
        load_max=loads.max(),
        load_min=loads.min(),
        load_balance=sums.load_balance / weight,
        z=sums.z / weight,
        dropped=sums.dropped / _count(visits),
    )


def moved_biases(
    variables: dict[str, jax.Array], routing: RoutingSums | None, rate: float | None
) -> dict[str, jax.Array]:
    """Router biases after a step: up where an expert had less than the mean, down where more.

    b += rate · sign(mean − visits), from the visits of the whole step (arXiv:2408.15664, alg. 1).
    """
    if routing is None or not rate:
        return variables

    def move(name: str, bias: jax.Array) -> jax.Array:
        visits = routing.visits[name.removesuffix(".bias")]  # [L, E]
        error = visits.mean(-1, keepdims=True) - visits
        return bias + (rate * jnp.sign(error)).astype(bias.dtype)

    return {name: move(name, bias) for name, bias in variables.items()}


def _load_balance(load: Load, whole: Load) -> jax.Array:
    """The loss `[L]` of layers, by this replica's scores and all replicas' visits."""
    experts = load.visits.shape[-1]
    share = whole.visits / _count(whole.visits.sum(-1, keepdims=True))  # [L, E]
    score = load.scores / _count(whole.tokens)[:, None]
    return experts * (share * score).sum(-1)


def _count(number: jax.Array) -> jax.Array:
    """A divisor that is not zero where nothing was counted."""
    return jnp.maximum(number, 1.0)
