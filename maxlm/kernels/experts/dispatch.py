"""Applying experts to a batch on whatever mesh is set.

In: tokens laid out as everywhere in the model, the experts each token visits, and weights laid out
as parameters are; out: the weighted sums of the experts' outputs, laid out as the tokens were. On a
mesh it is one `shard_map` over all axes: the weights' width is gathered (and their gradients
reduced and scattered again), rows go to the devices of their experts, and what each shard of a
hidden width contributes is added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config.schema import ExpertExchange, ExpertMatmul
from maxlm.kernels.activations import Hidden
from maxlm.kernels.experts.capacity import with_places
from maxlm.kernels.experts.exchange import all_to_all, gather, on_one_device
from maxlm.kernels.experts.mlp import ExpertLinear, ExpertWeights, grouped_mlp
from maxlm.kernels.grouped_matmul.choose import IMPLEMENTATIONS
from maxlm.parallel.axes import TABLE, is_one_piece, partition_spec, shard_count


class LinearAxes(NamedTuple):
    """Logical axes of the fields of an ExpertLinear."""

    kernel: tuple[str, str, str]
    bias: tuple[str, str]
    scale: tuple[str, str]


_INNER = LinearAxes(("experts", "expert_embed", "mlp"), *[("experts", "mlp")] * 2)
_OUTER = LinearAxes(("experts", "mlp", "expert_embed"), *[("experts", "vector")] * 2)
# By the fields of ExpertWeights.
WEIGHT_AXES = {"gate": _INNER, "up": _INNER, "down": _OUTER}


@dataclass(frozen=True)
class ExpertKernels:
    """How experts are computed; by default what runs everywhere.

    Attributes:
        matmul: the grouped matmul.
        exchange: how rows get to the devices of their experts; auto: what sends less.
    """

    matmul: ExpertMatmul = ExpertMatmul.BLOCKS
    exchange: ExpertExchange = ExpertExchange.GATHER


def apply_experts(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    weights: ExpertWeights,
    *,
    hidden_of: Hidden,
    kernels: ExpertKernels,
    places: int | None = None,
) -> jax.Array:
    """Each token's experts, weighted and added up.

    Args:
        x: `[B, T, D]` in the compute dtype.
        chosen: `[B, T, k]` int32 experts; E and more: none.
        scores: `[B, T, k]` weight of each, float32 or wider.
        weights: of all experts.
        hidden_of: of the MLP, hidden width from gate and up.
        kernels: how.
        places: of one expert in a row, where it has a capacity; None: all tokens find one.

    Returns:
        `[B, T, D]`.
    """
    num_experts = weights.up.kernel.shape[0]
    on_device = partial(
        _on_device,
        num_experts=num_experts,
        hidden_of=hidden_of,
        kernels=kernels,
        places=places,
    )
    if is_one_piece():
        return on_device(x, chosen, scores, weights, sharded=False)
    batch, length, _ = x.shape
    (x, scores), chosen = _divisible((x, scores), 0), _divisible((chosen,), num_experts)[0]
    tokens = partition_spec(("batch", "length", "activation"))
    out = jax.shard_map(
        partial(on_device, sharded=True),
        in_specs=(tokens, tokens, tokens, _specs(weights)),
        out_specs=tokens,
        check_vma=False,
    )(x, chosen, scores, weights)
    return out[:batch, :length]


def _specs(weights: ExpertWeights) -> Any:
    """Partition specs in the place of arrays."""

    def of(each: ExpertLinear | None, axes: LinearAxes) -> Any:
        if each is None:
            return None
        pairs = zip(each, axes, strict=True)
        specs: list[Any] = [None if a is None else partition_spec(names) for a, names in pairs]
        return ExpertLinear(*specs)

    return ExpertWeights(**{n: of(each, WEIGHT_AXES[n]) for n, each in weights._asdict().items()})


def _divisible(arrays: tuple[jax.Array, ...], fill: int) -> tuple[jax.Array, ...]:
    """Arrays `[B, T, …]` filled up so that they divide over the mesh (when generating they may not)."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = [shard_count(mesh, TABLE[axis]) for axis in ("batch", "length")]
    missing = [(0, -size % n) for size, n in zip(arrays[0].shape, shards, strict=False)]
    if not any(more for _, more in missing):
        return arrays
    return tuple(
        jnp.pad(a, [*missing, *[(0, 0)] * (a.ndim - 2)], constant_values=fill) for a in arrays
    )


def _on_device(
    x: jax.Array,
    chosen: jax.Array,
    scores: jax.Array,
    weights: ExpertWeights,
    *,
    num_experts: int,
    hidden_of: Hidden,
    kernels: ExpertKernels,
    places: int | None,
    sharded: bool,
) -> jax.Array:
    """The part of one device: all of it, or inside `shard_map` its tokens and its experts."""
    mesh = jax.sharding.get_abstract_mesh()
    experts_axis = hidden_axis = None
    if sharded:
        experts_axis, hidden_axis = (
            TABLE[axis] if shard_count(mesh, TABLE[axis]) > 1 else None
            for axis in ("experts", "mlp")
        )
        weights = _whole_width(weights, hidden_axis)
    if places is not None:
        out = with_places(
            x,
            chosen,
            scores,
            weights,
            places=places,
            num_experts=num_experts,
            hidden_of=hidden_of,
            axis=experts_axis,
        )
    else:
        matmul = IMPLEMENTATIONS[kernels.matmul].function
        mlp = partial(grouped_mlp, weights=weights, hidden_of=hidden_of, matmul=matmul)
        run: Callable[..., jax.Array] = on_one_device
        if experts_axis is not None:
            devices = shard_count(mesh, experts_axis)
            travels = rows_travel(kernels.exchange, chosen.shape[-1], devices)
            run = partial(all_to_all if travels else gather, axis=experts_axis)
        flat = [array.reshape(-1, array.shape[-1]) for array in (x, chosen, scores)]
        out = run(*flat, mlp, num_experts=num_experts).reshape(x.shape)
    return out if hidden_axis is None else jax.lax.psum(out, hidden_axis)


def rows_travel(exchange: ExpertExchange, visits: int, devices: int) -> bool:
    """Whether rows go to their experts one by one, and not all tokens to all devices.

    A token is then sent once for each visit instead of once for each device.
    """
    if exchange is ExpertExchange.AUTO:
        return visits < devices
    return exchange is ExpertExchange.ALL_TO_ALL


def _whole_width(weights: ExpertWeights, hidden_axis: tuple[str, ...] | None) -> ExpertWeights:
    """Gather the residual width of the matrices; the last bias counts once, not in every shard."""
    width = TABLE["expert_embed"]
    shards = jax.lax.axis_size(width)

    def gathered(each: ExpertLinear, dim: int) -> ExpertLinear:
        kernel = each.kernel
        # Gathering any dim but the first, a TPU copies whole matrices, whose gradients it adds up in another layout
        # than the kernels'. So experts change places with parts of the width first, which costs a shard.
        by_expert = shards > 1 and kernel.shape[0] % shards == 0
        if by_expert:
            kernel = jax.lax.all_to_all(kernel, width, 0, dim, tiled=True)
        whole = jax.lax.all_gather(kernel, width, axis=0 if by_expert else dim, tiled=True)
        return each._replace(kernel=whole)

    gate = None if weights.gate is None else gathered(weights.gate, 1)
    down = gathered(weights.down, 2)
    if down.bias is not None and hidden_axis is not None:
        once = jnp.where(jax.lax.axis_index(hidden_axis) == 0, down.bias, 0)
        down = down._replace(bias=once)
    return ExpertWeights(gate, gathered(weights.up, 1), down)
