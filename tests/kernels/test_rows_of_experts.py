"""Rows past the last expert's, which a kernel leaves as they were in memory, reach nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.kernels.experts.exchange import on_one_device
from maxlm.kernels.experts.mlp import ExpertLinear, ExpertWeights, grouped_mlp
from maxlm.kernels.grouped_matmul.reference import reference

EXPERTS, WIDTH, HIDDEN, TOKENS, VISITS = 4, 8, 6, 10, 2


def _covered(x, sizes):
    return (jnp.arange(x.shape[0]) < sizes.sum())[:, None]


@jax.custom_vjp
def dirty(x, weights, sizes):
    """A grouped matmul whose rows past the groups are no numbers, and whose gradient by rows neither."""
    return jnp.where(_covered(x, sizes), reference(x, weights, sizes), jnp.nan)


def _backward(residuals, dy):
    x, weights, sizes = residuals
    covered = _covered(x, sizes)
    clean = jnp.where(covered, x, 0)
    _, pull = jax.vjp(lambda x, weights: reference(x, weights, sizes), clean, weights)
    dx, dweights = pull(jnp.where(covered, dy, 0))
    return jnp.where(covered, dx, jnp.nan), dweights, None


dirty.defvjp(lambda *given: (dirty(*given), given), _backward)


def hidden_of(gate, up):
    return jax.nn.silu(jnp.clip(gate, -7, 7)) * up


def by_hand(x, scores, weights, chosen):
    """Every token through each of its experts, one visit at a time."""
    out = jnp.zeros_like(x)
    for visit in range(VISITS):
        expert = jnp.minimum(chosen[:, visit], EXPERTS - 1)

        def of(y, each, expert=expert):
            return jnp.einsum("nk,nkm->nm", y, each.kernel[expert]) + each.bias[expert]

        y = of(hidden_of(of(x, weights.gate), of(x, weights.up)), weights.down)
        visits = (chosen[:, visit] < EXPERTS)[:, None]
        out += jnp.where(visits, y * scores[:, visit : visit + 1], 0)
    return out


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("rows", [None, 17])
def test_gradients_with_garbage_equal_those_by_hand(rows):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float64)

    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    maps = [ExpertLinear(normal(EXPERTS, *s), normal(EXPERTS, s[1])) for s in shapes]
    weights, x, scores = ExpertWeights(*maps), normal(TOKENS, WIDTH), normal(TOKENS, VISITS)
    visits = [rng.permutation(EXPERTS + 2)[:VISITS] for _ in range(TOKENS)]
    chosen = jnp.asarray(np.clip(np.stack(visits), 0, EXPERTS), jnp.int32)
    assert (chosen == EXPERTS).any()  # some visit no expert
    up = normal(TOKENS, WIDTH)

    def loss(x, scores, weights, matmul):
        mlp = partial(grouped_mlp, weights=weights, hidden_of=hidden_of, matmul=matmul)
        out = on_one_device(x, chosen, scores, mlp, num_experts=EXPERTS, rows=rows)
        return jnp.sum(out * up)

    def plain(x, scores, weights):
        return jnp.sum(by_hand(x, scores, weights, chosen) * up)

    found = jax.grad(loss, (0, 1, 2))(x, scores, weights, dirty)
    wanted = jax.grad(plain, (0, 1, 2))(x, scores, weights)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
