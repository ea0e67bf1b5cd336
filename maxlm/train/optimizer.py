"""The optimizer: updates by kind of parameter, from optax's parts.

AdamW for everything, or Muon (orthogonalised momentum; Jordan et al. 2024, arXiv:2502.16982) for
the blocks' matrices and AdamW for embeddings, head and vectors. What a parameter is comes from its
declaration, never from its rank or name: stacked matrices are orthogonalised layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from maxlm.config.schema import OptimizerConfig, OptimizerKind
from maxlm.model.parameter import Kind, ParameterInfo


def make_optimizer(
    config: OptimizerConfig, parameters: dict[str, ParameterInfo]
) -> optax.GradientTransformation:
    """Build the transformation of a resolved config, at its peak learning rates.

    Clipping and the schedule are the train step's: the schedule is a function of the run's step,
    which a run that branches off another keeps, and no count inside the optimizer's state.

    Args:
        config: kind, rates, decay; `learning_rate` resolved.
        parameters: what each parameter declares.

    Returns:
        A transformation of a dict of gradients; its state mirrors the dict.
    """
    assert config.learning_rate is not None

    decay = optax.add_decayed_weights(
        config.weight_decay,
        mask=lambda tree: {name: parameters[name].kind is not Kind.VECTOR for name in tree},
    )
    adamw = optax.chain(
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        decay,
        optax.scale(-config.learning_rate),
    )
    if config.kind is OptimizerKind.ADAMW:
        return adamw
    dims = {
        name: contrib.MuonDimensionNumbers(info.reduction_dims, info.output_dims)
        for name, info in parameters.items()
        if info.kind is Kind.MATRIX
    }
    muon = optax.chain(
        contrib.scale_by_muon(
            beta=config.muon_momentum,
            ns_steps=config.muon_iterations,
            weight_dimension_numbers=dims,
        ),
        _scale_by_shape(parameters),
        decay,
        optax.scale(-config.muon_learning_rate),
    )
    return _by_group(
        {"muon": muon, "adamw": adamw}, lambda name: "muon" if name in dims else "adamw"
    )


def _by_group(
    transforms: dict[str, optax.GradientTransformation], group_of: Callable[[str], str]
) -> optax.GradientTransformation:
    """Give each group of a dict its own transformation.

    `optax.partition` would leave masks in the trees, which Muon's dimension numbers do not match.
    """

    def split(tree: dict[str, jax.Array], group: str) -> dict[str, jax.Array]:
        return {name: leaf for name, leaf in tree.items() if group_of(name) == group}

    def init(params: dict[str, jax.Array]) -> dict[str, optax.OptState]:
        return {group: t.init(split(params, group)) for group, t in transforms.items()}

    def update(
        grads: dict[str, jax.Array], state: dict[str, optax.OptState], params: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, optax.OptState]]:
        updates: dict[str, jax.Array] = {}
        new_state: dict[str, optax.OptState] = {}
        for group, transform in transforms.items():
            part, new_state[group] = transform.update(
                split(grads, group), state[group], split(params, group)
            )
            updates |= part
        return updates, new_state

    return optax.GradientTransformation(init, update)


def _scale_by_shape(parameters: dict[str, ParameterInfo]) -> optax.GradientTransformation:
    """Scale orthogonal updates by √max(1, out/in), so that each output moves alike (Jordan 2024)."""

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        def one(name: str, update: jax.Array) -> jax.Array:
            info = parameters[name]
            fan_in = math.prod(info.shape[d] for d in info.reduction_dims)
            fan_out = math.prod(info.shape[d] for d in info.output_dims)
            return update * max(1.0, fan_out / fan_in) ** 0.5

        return {name: one(name, update) for name, update in updates.items()}

    return optax.stateless(scale)


def global_norm(tree: dict[str, jax.Array]) -> jax.Array:
    """Root of the sum of squares over all arrays, in float32 or wider."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(_wide(x))) for x in tree.values()))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
