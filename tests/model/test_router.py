"""Routing against plain numpy: scores, choices, weights, loads, losses, and biases that move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maxlm.config.schema import ModelConfig
from maxlm.kernels.cross_entropy import LossSums
from maxlm.model.balance import moved_biases, routing_metrics, with_routing
from maxlm.model.parameter import normal
from maxlm.model.router import Router

BATCH, LENGTH, EMBED, EXPERTS, VISITS = 3, 10, 12, 7, 3


def make(**options):
    """A router with a random kernel and bias, tokens, and which of them count."""
    config = ModelConfig(embed_dim=EMBED, num_experts=EXPERTS, experts_per_token=VISITS, **options)
    router = Router(config, nnx.Rngs(0), init=normal(0.5), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    if router.bias is not None:
        router.bias[...] = jnp.asarray(rng.normal(0, 0.2, EXPERTS), jnp.float32)
    x = rng.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    counted = rng.random((BATCH, LENGTH)) < 0.8
    return config, router, x, counted


def by_hand(router, x, *, sigmoid, normalize, scale):
    """(scores, chosen, weights) of every token, one by one."""
    logits = x.reshape(-1, EMBED).astype(np.float64) @ np.asarray(router.kernel[...], np.float64)
    bias = 0 if router.bias is None else np.asarray(router.bias[...], np.float64)
    all_scores, chosen, weights = [], [], []
    for row in logits:
        scores = 1 / (1 + np.exp(-row)) if sigmoid else np.exp(row) / np.exp(row).sum()
        best = np.argsort(-(scores + bias), kind="stable")[:VISITS]
        weight = scores[best] / (scores[best].sum() if normalize else 1)
        all_scores.append(scores)
        chosen.append(best)
        weights.append(weight * scale)
    return logits, np.array(all_scores), np.array(chosen), np.array(weights)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_choices_and_weights_equal_numpy(sigmoid, normalize):
    options = {
        "router_scoring": "sigmoid" if sigmoid else "softmax",
        "router_normalize": normalize,
        "router_scale": 2.5,
        "router_bias_rate": 0.1,
    }
    _, router, x, counted = make(**options)
    chosen, weights, load = router(jnp.asarray(x), jnp.asarray(counted))
    logits, scores, wanted, wanted_weights = by_hand(
        router, x, sigmoid=sigmoid, normalize=normalize, scale=2.5
    )
    flat = counted.reshape(-1)
    actual = np.asarray(chosen).reshape(-1, VISITS)
    np.testing.assert_array_equal(actual[flat], wanted[flat])
    assert (actual[~flat] == EXPERTS).all()  # padding visits no expert
    np.testing.assert_allclose(np.asarray(weights).reshape(-1, VISITS), wanted_weights, rtol=1e-5)
    np.testing.assert_array_equal(load.visits, np.bincount(wanted[flat].ravel(), minlength=EXPERTS))
    share = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(load.scores, share[flat].sum(0), rtol=1e-5)
    squares = np.log(np.exp(logits).sum(1)) ** 2
    np.testing.assert_allclose(load.squared_log_z, squares[flat].sum(), rtol=1e-5)
    assert load.tokens == flat.sum()


@pytest.mark.parametrize("sigmoid", [True, False])
def test_experts_are_of_the_best_groups(sigmoid):
    """A group counts by its best expert, of sigmoids by the sum of its best two."""
    config = ModelConfig(
        embed_dim=EMBED,
        num_experts=8,
        experts_per_token=3,
        router_scoring="sigmoid" if sigmoid else "softmax",
        router_groups=4,
        router_groups_per_token=2,
        router_bias_rate=0.0,
        router_logit_bias=True,
    )
    router = Router(config, nnx.Rngs(0), init=normal(0.5), dtype=jnp.float32)
    rng = np.random.default_rng(0)
    router.bias[...] = jnp.asarray(rng.normal(0, 0.2, 8), jnp.float32)
    router.logit_bias[...] = jnp.asarray(rng.normal(0, 1, 8), jnp.float32)
    x = rng.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    chosen, weights, _ = router(jnp.asarray(x), jnp.ones((BATCH, LENGTH), bool))
    logits = x.reshape(-1, EMBED) @ np.asarray(router.kernel[...]) + np.asarray(router.logit_bias)
    score = jax.nn.sigmoid if sigmoid else jax.nn.softmax
    elsewhere = 0
    for row, got, weight in zip(
        np.asarray(score(logits)), chosen.reshape(-1, 3), weights.reshape(-1, 3), strict=True
    ):
        preferred = row + np.asarray(router.bias[...])
        ordered = np.sort(preferred.reshape(4, 2), axis=1)[:, ::-1]
        groups = np.argsort(-(ordered.sum(1) if sigmoid else ordered[:, 0]))[:2]
        allowed = [expert for expert in range(8) if expert // 2 in groups]
        wanted = sorted(allowed, key=lambda expert: -preferred[expert])[:3]
        assert list(got) == wanted
        np.testing.assert_allclose(weight, row[wanted] / row[wanted].sum(), rtol=1e-5)
        elsewhere += set(wanted) != set(np.argsort(-preferred)[:3])
    assert elsewhere > 5  # groups do keep tokens from experts that they would have gone to


def test_a_bias_changes_the_choice_and_not_the_weights():
    _, router, x, counted = make(router_scoring="sigmoid", router_bias_rate=0.0)
    router.bias[...] = jnp.zeros(EXPERTS).at[4].set(10.0)
    chosen, weights, _ = router(jnp.asarray(x), jnp.ones_like(jnp.asarray(counted)))
    assert (chosen[..., 0] == 4).all()
    scores = jax.nn.sigmoid(x @ router.kernel[...])
    picked = np.take_along_axis(np.asarray(scores), np.asarray(chosen), -1)
    np.testing.assert_allclose(weights, picked / picked.sum(-1, keepdims=True), rtol=1e-5)


def loads_of(router, x, counted):
    """Two layers with the same router, as a segment stacks them."""
    *_, load = router(jnp.asarray(x), jnp.asarray(counted))
    return {"router": jax.tree.map(lambda a: jnp.stack([a, a]), load)}


def test_losses_equal_their_formulas():
    config, router, x, counted = make(load_balance_loss=0.3, router_z_loss=0.2)
    sums = LossSums(jnp.float32(50.0), jnp.float32(48.0), jnp.float32(20.0))
    out = with_routing(sums, loads_of(router, x, counted), config)
    logits, scores, chosen, _ = by_hand(router, x, sigmoid=False, normalize=True, scale=1)
    flat = counted.reshape(-1)
    visits = np.bincount(chosen[flat].ravel(), minlength=EXPERTS)
    balance = EXPERTS * (visits / visits.sum() * scores[flat].mean(0)).sum()
    z = (np.log(np.exp(logits[flat]).sum(1)) ** 2).mean()
    np.testing.assert_allclose(out.total, 50 + 20 * (0.3 * balance + 0.2 * z), rtol=1e-5)
    assert (out.nll, out.weight) == (48.0, 20.0)
    metrics = routing_metrics(out.routing, out.weight)
    np.testing.assert_allclose(metrics.load_balance, balance, rtol=1e-5)
    np.testing.assert_allclose(metrics.z, z, rtol=1e-5)
    np.testing.assert_allclose(metrics.load_max, visits.max() / visits.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics.load_min, visits.min() / visits.mean(), rtol=1e-6)
    assert metrics.dropped == 0


def test_an_even_load_has_a_balance_loss_of_one():
    config, router, x, counted = make()
    load = loads_of(router, x, counted)["router"]
    even = load._replace(
        visits=jnp.full((2, EXPERTS), 30.0), scores=jnp.full((2, EXPERTS), 10.0 / EXPERTS),
        tokens=jnp.full(2, 10.0),
    )  # fmt: skip
    out = with_routing(LossSums(*jnp.ones(3)), {"router": even}, config)
    np.testing.assert_allclose(out.routing.load_balance, 1.0, rtol=1e-6)


def test_a_batch_of_padding_alone_has_no_loss_and_no_nan():
    config, router, x, counted = make(router_z_loss=1.0)
    loads = loads_of(router, x, np.zeros_like(counted))
    out = with_routing(LossSums(*jnp.zeros(3)), loads, config)
    assert out.total == 0
    assert all(np.isfinite(m) for m in routing_metrics(out.routing, out.weight))


def test_biases_move_towards_an_even_load():
    _, router, x, counted = make(router_bias_rate=0.01)
    loads = loads_of(router, x, counted)
    routing = with_routing(LossSums(*jnp.ones(3)), loads, ModelConfig()).routing
    before = {"router.bias": jnp.zeros((2, EXPERTS))}
    after = moved_biases(before, routing, 0.01)["router.bias"]
    visits = np.asarray(loads["router"].visits)
    np.testing.assert_allclose(
        after, 0.01 * np.sign(visits.mean(1, keepdims=True) - visits), rtol=1e-6
    )
    assert moved_biases(before, routing, 0.0) is before
