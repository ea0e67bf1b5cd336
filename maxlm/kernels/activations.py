"""Activations of the MLP; the exact GELU with a gradient that costs one exponential.

XLA expands the derivative of `erf` into a second rational approximation and, on a CPU, fuses it
into the copies around the weight gradients; the closed form `Φ(x) + x φ(x)` avoids both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maxlm.config.schema import Activation, MLPKind, ModelConfig

# (gate or None, up) → hidden
Hidden = Callable[[jax.Array | None, jax.Array], jax.Array]


def hidden_of(config: ModelConfig) -> Hidden:
    """How the hidden width of a model's MLP comes from its projections.

    `act(gate) × up`, gated_shifted `act(gate) × (up + 1)`, plain `act(up)`; with `mlp_limit` m the
    gate is at most m and a gated up within ±m, before anything else (gpt-oss, arXiv:2508.10925).
    """
    act, limit = ACTIVATIONS[config.activation], config.mlp_limit
    shift = 1 if config.mlp is MLPKind.GATED_SHIFTED else 0

    def hidden(gate: jax.Array | None, up: jax.Array) -> jax.Array:
        if gate is None:
            return act(up if limit is None else jnp.minimum(up, limit))
        if limit is not None:
            gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return act(gate) * (up + shift if shift else up)

    return hidden


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, `x Φ(x)` (Hendrycks & Gimpel, arXiv:1606.08415)."""
    return x * _normal_cdf(x)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    # The slope is all that the backward pass needs: computed while erf(x) is at hand.
    return x * cdf, cdf + x * density


def _gelu_backward(slope: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (dy * slope,)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU: gelu,
    Activation.GELU_TANH: lambda x: jax.nn.gelu(x, approximate=True),
    Activation.QUICK_GELU: lambda x: x * jax.nn.sigmoid(1.702 * x),  # arXiv:1606.08415, section 2
    Activation.RELU: jax.nn.relu,
    Activation.RELU2: lambda x: jnp.square(jax.nn.relu(x)),  # So et al., arXiv:2109.08668
}
