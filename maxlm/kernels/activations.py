"""Activations of the MLP; the exact GELU with a gradient that costs one exponential.

XLA expands the derivative of `erf` into a second rational approximation and, on a CPU, fuses it
into the copies around the weight gradients; the closed form `Φ(x) + x φ(x)` avoids both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maxlm.config.schema import Activation


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
    Activation.RELU: jax.nn.relu,
    Activation.RELU2: lambda x: jnp.square(jax.nn.relu(x)),  # So et al., arXiv:2109.08668
}
